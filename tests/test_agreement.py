import re

from hosts_helper import JOIN, run_processes

from resnet_jax.hosts.agreement import check_agreement, describe_differences


def test_one_process_agrees_with_itself():
    check_agreement({"seed": "1"})


def test_differences_are_named_with_who_has_them():
    facts = {
        0: {"seed": "1", "commit": "abc", "same": "x"},
        1: {"seed": "2", "commit": "abc", "same": "x"},
        2: {"seed": "1", "same": "x"},
        3: {"seed": "1", "commit": "", "same": "x"},
    }
    assert describe_differences(facts) == (
        "the processes disagree on commit: abc on processes 0-1; nothing on process 2;  on process 3"
        " | seed: 1 on processes 0, 2-3; 2 on process 1"
    )


def test_long_values_are_shortened_and_still_told_apart():
    message = describe_differences({0: {"config": "x" * 1000 + "a"}, 1: {"config": "x" * 1000 + "b"}})
    assert len(message) < 400
    first, second = message.split("; ")
    assert first.split("sha256")[1].split(")")[0] != second.split("sha256")[1].split(")")[0]


def test_processes_agree_differ_and_miss_one(tmp_path):
    snippet = JOIN + (
        "import time, jax\n"
        "from resnet_jax.hosts.agreement import check_agreement\n"
        "def check(facts, **options):\n"
        "    begun = time.monotonic()\n"
        "    try:\n"
        "        check_agreement(facts, **options)\n"
        "        print('agreed', end='')\n"
        "    except (ValueError, ConnectionError) as error:\n"
        "        print(type(error).__name__, error, end='')\n"
        "    print(f' after {time.monotonic() - begun:.2f} s')\n"
        "me = jax.process_index()\n"
        "config = 'x' * 50_000\n"
        "check({'seed': '1', 'config': config})\n"
        "check({'seed': str(1 + me % 2), 'config': config})\n"
        "check({'seed': '1', 'config': config})\n"
        "if me == 1:\n    time.sleep(4)\n"
        "elif me == 2:\n    time.sleep(0.5)\n    check({'seed': '1'}, seconds=60)\n"
        "else:\n    check({'seed': '1'}, seconds=2)\n"
    )
    ended = run_processes(snippet, 3, tmp_path)
    assert [one.code for one in ended] == [0, 0, 0], "\n".join(one.output for one in ended)
    lines = [re.findall(r"^(.*) after ([\d.]+) s$", one.output, re.MULTILINE) for one in ended]
    said = [[message for message, _ in own] for own in lines]
    for own in said:
        assert own[:3] == [
            "agreed",
            "ValueError the processes disagree on seed: 1 on processes 0, 2; 2 on process 1",
            "agreed",
        ]
    missed = "PeerLost process 1 of 3 did not come to the agreement within 2 s"
    assert said[0][3:] == said[2][3:] == [missed]
    # Process 2 would have waited longer, but stops when process 0 does.
    assert float(lines[0][3][1]) >= 2 and float(lines[2][3][1]) < 30
    assert said[1][3:] == []


def test_all_hear_of_a_difference_before_process_0_leaves(tmp_path):
    """With process 0 goes the service that the others ask."""
    snippet = JOIN + (
        "import sys, time, jax\n"
        "from resnet_jax.hosts import agreement\n"
        "from resnet_jax.hosts.launch import leave\n"
        "me = jax.process_index()\n"
        "read = agreement._Agreement.facts_of\n"
        "if me == 2:\n    agreement._Agreement.facts_of = lambda *those: time.sleep(0.4) or read(*those)\n"
        "try:\n    agreement.check_agreement({'seed': str(me), 'config': str(me) * 1_000_000})\n"
        "except ValueError as error:\n    print(error)\n    sys.exit(leave(2))\n"
    )
    for ended in run_processes(snippet, 3, tmp_path):
        assert ended.code == 2, ended.output
        assert "seed: 0 on process 0; 1 on process 1; 2 on process 2" in ended.output
