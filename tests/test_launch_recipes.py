"""The recipes of experiments/launch with stand-ins for the clusters: they parse, restart what they should, and run."""

import argparse
import os
import re
import shlex
import shutil
import subprocess
import sys

import pytest
import yaml
from hosts_helper import CHECKOUT, clean_environment, free_port
from test_launch import no_cluster, set_variables  # noqa: F401  (a fixture of every test here)

from resnet_jax import exit_codes
from resnet_jax.commands import train
from resnet_jax.hosts.place import Place, stated_place

LAUNCH = CHECKOUT / "experiments" / "launch"
SCRIPTS = ("slurm.sh", "tpu_pod.sh")
CODES = {value for name, value in vars(exit_codes).items() if name.isupper()}
# With SIGABRT jax ends the others of a process that is gone; SIGKILL, the watchdog's SIGALRM, a second SIGTERM.
SIGNALS = {134, 137, 142, 143}
RESTART = {
    exit_codes.STUCK,
    exit_codes.PEER_LOST,
    exit_codes.ASTRAY,
    exit_codes.WORKER_LOST,
    exit_codes.PREEMPTED,
} | SIGNALS
STOP = {1, exit_codes.BAD_INPUT, exit_codes.DIVERGED, exit_codes.UNSAVED}

# Starts two tasks on this machine as srun does on the nodes, and ends with the highest of their codes.
SRUN = """
while [[ $1 == --* ]]; do shift; done
export SLURM_STEP_NODELIST=127.0.0.1 SLURM_NTASKS=2 SLURM_STEP_NUM_TASKS=2
for task in 0 1; do
    SLURM_PROCID=$task SLURM_LOCALID=$task "$@" &
    tasks[task]=$!
done
highest=0
for task in "${tasks[@]}"; do
    wait "$task" || code=$?
    ((${code:-0} > highest)) && highest=$code
done
exit "$highest"
"""


@pytest.fixture
def programs(tmp_path):
    """Adds programs of a name and a bash script each to a folder, and gives the environment in which they are found."""
    folder = tmp_path / "programs"
    folder.mkdir()

    def add(**scripts):
        for name, script in scripts.items():
            path = folder / name.replace("_", "-")
            path.write_text(f"#!/usr/bin/env bash\n{script}")
            path.chmod(0o755)
        return clean_environment() | {"PATH": f"{folder}:{os.environ['PATH']}", "SEEN": str(tmp_path / "seen")}

    return add


def run(script, environment, *words, folder):
    return subprocess.run(
        [LAUNCH / script, *map(str, words)], env=environment, cwd=folder, capture_output=True, text=True, timeout=120
    )


def job():
    """The Kubernetes job."""
    return next(part for part in yaml.safe_load_all((LAUNCH / "kubernetes.yaml").read_text()) if part["kind"] == "Job")


def flags_of_train():
    parser = argparse.ArgumentParser()
    train.add_flags(parser)
    return {text for action in parser._actions for text in action.option_strings}


def check_words(words):
    """That they are those of `resnet-jax train`, with flags that it has."""
    assert words[:2] == ["resnet-jax", "train"]
    flags = {word.partition("=")[0] for word in words[2:]}
    assert {flag for flag in flags if not flag.startswith("--config.")} <= flags_of_train()
    assert {"--config", "--workdir", "--joining_seconds"} <= flags


@pytest.mark.parametrize("script", SCRIPTS)
def test_scripts_parse_and_can_be_started(script):
    subprocess.run(["bash", "-n", LAUNCH / script], check=True)
    assert os.access(LAUNCH / script, os.X_OK)


def test_every_code_of_a_run_is_said_to_be_worth_a_restart_or_not():
    assert RESTART | STOP | {exit_codes.DONE, exit_codes.INTERRUPTED} >= CODES
    assert not RESTART & STOP
    rows = re.findall(r"^\| ([\d, ]+) \|.*\| (\w+)[^|]*\|$", (LAUNCH / "README.md").read_text(), re.MULTILINE)
    told = {int(code): answer for codes, answer in rows for code in codes.split(", ")}
    assert {code for code, answer in told.items() if answer == "restart"} == RESTART
    assert {code for code, answer in told.items() if answer == "stop"} == STOP
    assert told.keys() >= CODES


def test_readme_names_flags_that_train_has():
    text = (LAUNCH / "README.md").read_text()
    commands = [shlex.split(line) for line in re.findall(r"resnet-jax train (.*--.*)", text)]
    flags = {word.partition("=")[0] for words in commands for word in words if word.startswith("--")}
    assert "--simulate_hosts" in flags
    assert {flag for flag in flags if not flag.startswith("--config.")} <= flags_of_train()


# SLURM


@pytest.mark.parametrize("code", [0, *sorted(RESTART | STOP)])
def test_slurm_queues_again_what_may_go_on(code, programs, tmp_path):
    srun = 'printf "%s\\n" "$@" > "$SEEN"; exit $CODE'
    environment = programs(srun=srun, scontrol='echo "scontrol $@"')
    environment |= {"CODE": str(code), "SLURM_JOB_ID": "4097", "SLURM_CPUS_PER_TASK": "3"}
    done = run("slurm.sh", environment, "--config=digits", "--workdir=a folder", folder=tmp_path)
    assert done.returncode == code and done.stderr == ""
    assert done.stdout == ("scontrol requeue 4097\n" if code in RESTART else "")
    words = (tmp_path / "seen").read_text().splitlines()
    command = words.index("resnet-jax")
    check_words(words[command:])
    assert words[-1] == "--workdir=a folder" and "--cpus-per-task=3" in words[:command]
    # It would send the others a second SIGTERM, which does not wait for a checkpoint.
    assert "--kill-on-bad-exit=0" in words[:command]


def test_slurm_does_not_queue_for_ever(programs, tmp_path):
    environment = programs(srun=f"exit {exit_codes.PEER_LOST}", scontrol="echo again")
    environment |= {"SLURM_JOB_ID": "4097", "SLURM_RESTART_COUNT": "50"}
    assert run("slurm.sh", environment, folder=tmp_path).stdout == ""


def test_slurm_runs_two_tasks_as_one_run(programs, tmp_path):
    (tmp_path / "run").mkdir()
    # A run that is finished: its processes meet and read the record, and the first says what it holds.
    shutil.copy(CHECKOUT / "experiments" / "quickstart" / "records" / "digits.json", tmp_path / "run" / "record.json")
    environment = programs(srun=SRUN, resnet_jax=f'exec "{sys.executable}" -m resnet_jax "$@"')
    # In place of the port that jax takes from the job's number.
    environment |= {"SLURM_JOB_ID": "4097", "JAX_COORDINATOR_PORT": str(free_port()), "PYTHONPATH": str(CHECKOUT)}
    done = run("slurm.sh", environment, "--config=digits", f"--workdir={tmp_path / 'run'}", folder=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    # Alone, each would be the first.
    assert done.stdout.count("test error 0.84 % of 359 images") == 1


# Cloud TPU

# What a host's ssh server does with the command; but it does not wait.
GCLOUD = """
printf "%s\\n" "${@:1:$#-1}" > "$SEEN"
command=${@: -1}
bash -c "${command#--command=}"$'\\nwait'
"""
# Ends with the code when it is called first, and well when again.
ONCE = """
printf "%s\\n" "$@" >> "$SEEN"
echo >> "$SEEN.calls"
(($(wc -l < "$SEEN.calls") > 1)) || exit "$CODE"
"""


@pytest.mark.parametrize("code", [0, *sorted(RESTART | STOP)])
def test_a_tpu_host_starts_again_what_may_go_on(code, programs, tmp_path):
    environment = programs(gcloud=GCLOUD, resnet_jax=ONCE, sleep="")
    environment |= {"TPU": "my-tpu", "ZONE": "us-central2-b", "CODE": str(code)}
    done = run("tpu_pod.sh", environment, "--config=digits", "--workdir=a 'folder'", folder=tmp_path)
    assert done.returncode == 0 and done.stderr == ""
    seen = (tmp_path / "seen").read_text().splitlines()
    gcloud = ["compute", "tpus", "tpu-vm", "ssh", "my-tpu", "--zone=us-central2-b", "--worker=all"]
    assert seen[: len(gcloud)] == gcloud
    words = ["train", "--joining_seconds=600", "--config=digits", "--workdir=a 'folder'"]
    check_words(["resnet-jax", *words])
    assert seen[len(gcloud) :] == words * (2 if code in RESTART else 1)
    said = f"resnet-jax ended with {code}\n" if code else ""
    assert (tmp_path / "resnet_jax.log").read_text() == said


def test_the_loop_of_a_tpu_host_is_stopped_by_what_the_script_says(programs, tmp_path):
    pattern = re.search(r"pkill -TERM -f '(.*)'", (LAUNCH / "tpu_pod.sh").read_text())[1]
    environment = programs(gcloud=GCLOUD, resnet_jax='tr "\\0" " " < /proc/$PPID/cmdline > "$SEEN"')
    run("tpu_pod.sh", environment | {"TPU": "a", "ZONE": "b"}, "--config=digits", folder=tmp_path)
    assert re.search(pattern, (tmp_path / "seen").read_text())
    assert re.search(pattern, "python /home/someone/bin/resnet-jax train --config=digits")
    assert not re.search(pattern, f"bash -c pkill -TERM -f '{pattern}'")


# Kubernetes


def test_kubernetes_restarts_what_may_go_on():
    """Whatever no rule names counts towards backoffLimit, and its pod is replaced."""
    spec = job()["spec"]
    assert spec["template"]["spec"]["restartPolicy"] == "Never"  # without it the policy is refused
    rules = {}
    for rule in spec["podFailurePolicy"]["rules"]:
        codes = rule.get("onExitCodes")
        if codes is not None:
            assert (codes["containerName"], codes["operator"]) == (container()["name"], "In")
            assert codes["values"] == sorted(codes["values"])
            rules[rule["action"]] = set(codes["values"])
    assert rules["FailJob"] == STOP
    assert rules["Ignore"] == {exit_codes.PEER_LOST, exit_codes.PREEMPTED}


def container():
    (only,) = job()["spec"]["template"]["spec"]["containers"]
    return only


def test_each_pod_finds_its_place(monkeypatch):
    parts = {part["kind"]: part for part in yaml.safe_load_all((LAUNCH / "kubernetes.yaml").read_text())}
    spec, service, policy = job()["spec"], parts["Service"], parts["NetworkPolicy"]
    count = spec["completions"]
    assert spec["completionMode"] == "Indexed" and spec["parallelism"] == count
    assert service["spec"]["clusterIP"] == "None"
    assert service["metadata"]["name"] == spec["template"]["spec"]["subdomain"]
    label = {"job-name": job()["metadata"]["name"]}  # of the job's pods, by Kubernetes itself
    assert service["spec"]["selector"] == policy["spec"]["podSelector"]["matchLabels"] == label
    assert policy["spec"]["ingress"] == [{"from": [{"podSelector": {"matchLabels": label}}]}]

    variables = {variable["name"]: variable for variable in container()["env"]}
    index = variables["RESNET_JAX_PROCESS_INDEX"]["valueFrom"]["fieldRef"]["fieldPath"]
    assert index == "metadata.annotations['batch.kubernetes.io/job-completion-index']"
    values = {name: variable["value"] for name, variable in variables.items() if "value" in variable}
    set_variables(monkeypatch, values | {"RESNET_JAX_PROCESS_INDEX": str(count - 1)})
    host = f"{label['job-name']}-0.{service['metadata']['name']}"
    assert stated_place(None, None, None) == Place(f"{host}:8476", count, count - 1, detected=False)
    check_words(container()["command"] + container()["args"])


def test_pods_can_heed_signals_and_save():
    pod = job()["spec"]["template"]["spec"]
    assert pod["shareProcessNamespace"] is True
    assert pod["terminationGracePeriodSeconds"] >= 120
