#!/usr/bin/env python3
"""A Ray cluster on one machine: a head without CPUs, a job server, worker nodes that an autoscaler starts and stops.

Worker nodes are processes of this machine, one CPU each, so a run sees what it would see on a real cluster: no place
first, then a node, then more, and none again when it is idle. Private folder, ports and token.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from pathlib import Path

_START_S, _STOP_S = 120.0, 3.0
#: keys that Ray expects in the file, with nothing in them
_EMPTY_LISTS = (
    "initialization_commands", "setup_commands", "head_setup_commands", "worker_setup_commands",
    "head_start_ray_commands", "worker_start_ray_commands", "cluster_synced_files", "rsync_exclude", "rsync_filter",
)  # fmt: skip


class LocalCluster:
    """Starts on entering, ends on leaving; only what it started.

    Args:
        nodes: worker nodes at most.
        idle_s: wall seconds after which an idle node goes.
        cpus_per_node: logical CPUs of each.
        gpus_per_node: logical GPUs of each; none exist.

    Attributes:
        jobs: the job server, http://host:port.
        address: of the head, host:port.
        token: that clients need.
    """

    def __init__(self, nodes: int = 3, idle_s: float = 12.0, cpus_per_node: int = 1, gpus_per_node: int = 0) -> None:
        self.nodes, self.idle_s, self.cpus, self.gpus = nodes, idle_s, cpus_per_node, gpus_per_node
        self.token = secrets.token_hex(32)
        self._head: subprocess.Popen[bytes] | None = None
        self._folder = Path()

    def environment(self) -> dict[str, str]:
        """What a client sets."""
        return {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(self._folder / "token")}

    def __enter__(self) -> LocalCluster:
        self._folder = Path(tempfile.mkdtemp(prefix="rl"))  # short: unix socket paths are capped at 107 bytes
        token = self._folder / "token"
        token.touch(mode=0o600)
        token.write_text(self.token)
        gcs, dashboard = _free_port(), _free_port()
        self.address, self.jobs = f"{_own_address()}:{gcs}", f"http://127.0.0.1:{dashboard}"
        (self._folder / "cluster.json").write_text(json.dumps(self._config()))
        command = [
            str(Path(sys.executable).with_name("ray")), "start", "--head", "--block", "--num-cpus=0",
            "--disable-usage-stats", "--object-store-memory=150000000", "--dashboard-host=127.0.0.1",
            f"--port={gcs}", f"--dashboard-port={dashboard}", f"--dashboard-agent-listen-port={_free_port()}",
            f"--ray-client-server-port={_free_port()}", f"--temp-dir={self._folder}",
            f"--autoscaling-config={self._folder / 'cluster.json'}",
        ]  # fmt: skip
        with (self._folder / "head.log").open("w") as log:
            self._head = subprocess.Popen(
                command, stdout=log, stderr=subprocess.STDOUT, start_new_session=True, env=self._head_environment()
            )
        try:
            self._wait()
        except BaseException:
            self.__exit__()
            raise
        return self

    def _head_environment(self) -> dict[str, str]:
        clean = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
        return clean | self.environment() | {
            "RAY_FAKE_CLUSTER": "1", "RAY_enable_autoscaler_v2": "1", "AUTOSCALER_UPDATE_INTERVAL_S": "1",
            "RAY_CLOUD_INSTANCE_ID": _head_id(), "RAY_OVERRIDE_NODE_ID_FOR_TESTING": _head_id(),
            # jobs call `python`: the one that runs this
            "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")]),
            "PYTHONPATH": os.pathsep.join(filter(None, [str(Path(__file__).parent), os.environ.get("PYTHONPATH")])),
            "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0", "OMP_NUM_THREADS": "1", "RAY_JOB_STOP_WAIT_TIME_S": "60",
        }  # fmt: skip

    def _config(self) -> dict[str, object]:
        resources = {"CPU": self.cpus, "object_store_memory": 100 * 2**20} | ({"GPU": self.gpus} if self.gpus else {})
        return {
            "cluster_name": "local",
            "max_workers": self.nodes,
            "upscaling_speed": 1.0,
            "idle_timeout_minutes": self.idle_s / 60,
            "provider": {
                "type": "external",
                "module": "local_nodes.LocalNodes",
                "use_node_id_as_ip": True,
                "disable_node_updaters": True,
                "disable_launch_config_check": True,
                "launch_multiple": True,
                "head_node_id": _head_id(),
                "gcs_address": self.address,
            },
            "head_node_type": "ray.head.default",
            "available_node_types": {
                "ray.head.default": {"resources": {"CPU": 0}, "node_config": {}, "max_workers": 0},
                "worker": {
                    "resources": resources, "labels": {"atoll/pool": "cpu"}, "node_config": {},
                    "min_workers": 0, "max_workers": self.nodes,
                },
            },
            "auth": {}, "docker": {}, "file_mounts": {}, "file_mounts_sync_continuously": False,
            **{name: [] for name in _EMPTY_LISTS},
        }  # fmt: skip

    def _wait(self) -> None:
        until = time.monotonic() + _START_S
        asked = urllib.request.Request(f"{self.jobs}/api/jobs/", headers={"Authorization": f"Bearer {self.token}"})
        while time.monotonic() < until:
            if self._head is None or self._head.poll() is not None:
                raise RuntimeError(f"the head ended: {self.log()[-2000:]}")
            try:
                urllib.request.urlopen(asked, timeout=2).close()
                return
            except urllib.error.HTTPError as error:
                error.close()
            except OSError:
                pass
            time.sleep(0.3)
        raise TimeoutError(f"the head did not come up in {_START_S:.0f} s: {self.log()[-2000:]}")

    def log(self) -> str:
        """What the head has said."""
        return (self._folder / "head.log").read_text(errors="replace")

    def __exit__(self, *_: object) -> None:
        if self._head is not None and self._head.poll() is None:
            self._head.send_signal(signal.SIGTERM)
            try:
                self._head.wait(_STOP_S)
            except subprocess.TimeoutExpired:
                self._head.kill()
                self._head.wait()
        for pid in self._left():
            with contextlib.suppress(OSError):
                os.kill(pid, signal.SIGKILL)
        shutil.rmtree(self._folder, ignore_errors=True)

    def _left(self) -> list[int]:
        """Processes of this cluster that outlived its head: those of its session, and those that name its folder."""
        found = []
        for entry in Path("/proc").iterdir():
            if not entry.name.isdigit() or self._head is None:
                continue
            try:
                is_own = os.getsid(int(entry.name)) == self._head.pid
                if is_own or str(self._folder).encode() + b"/" in (entry / "cmdline").read_bytes():
                    found.append(int(entry.name))
            except OSError:
                continue
        return found


def _head_id() -> str:
    from ray.autoscaler._private.fake_multi_node.node_provider import FAKE_HEAD_NODE_ID

    return str(FAKE_HEAD_NODE_ID)


def _own_address() -> str:
    from ray.util import get_node_ip_address

    return str(get_node_ip_address())


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def main() -> int:
    """Runs until Ctrl-C or SIGTERM."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--nodes", type=int, default=3, help="worker nodes at most")
    parser.add_argument("--idle-s", type=float, default=30.0, help="seconds after which an idle node goes")
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        with LocalCluster(options.nodes, options.idle_s) as cluster:
            values = {"RAY_API_SERVER_ADDRESS": cluster.jobs, **cluster.environment()}
            text = "".join(f"export {name}={value}\n" for name, value in values.items())
            Path(".local_cluster.env").write_text(text)
            print(text + "# or: . ./.local_cluster.env      (Ctrl-C here ends the cluster)", flush=True)
            while True:
                time.sleep(3600)
    except KeyboardInterrupt:
        return 0
    finally:
        Path(".local_cluster.env").unlink(missing_ok=True)


if __name__ == "__main__":
    sys.exit(main())
