"""Both sides of a mailbox in a bucket, with moto's S3."""

from __future__ import annotations

import http.client
import json
import os
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any, NoReturn

import pytest

from entangle._aws import bucket as buckets
from entangle._aws.account import Account
from entangle._aws.account_options import account_from
from entangle._aws.bucket import Bucket
from entangle._services import envelope
from entangle._services.far import addresses
from entangle._services.far.addresses import FarAddresses
from entangle._services.far.program import FarProgram
from entangle.errors import FarError, OptionError, UnreachableError

from ..evidence import wait_until
from ..services.emulators import Emulator

Client = Callable[[str], Any]


@pytest.fixture
def account(aws_environment: Emulator, bucket: str) -> Account:
    return Account(bucket=bucket)


@pytest.fixture
def box(account: Account) -> Iterator[Bucket]:
    made = Bucket(account)
    yield made
    made.close()


def sent(box: Bucket, name: str, *parts: bytes) -> FarAddresses:
    """Send a message, and open the mailbox as the message's program does."""
    box.send(name, envelope.written({"name": name}, [[part] for part in parts]))
    _, program, address, _ = box.command(box.add_code("program", b"pass"), name, ["program"], None)
    assert addresses._request("GET", program).body == b"pass"
    box.flush()
    return FarAddresses(address)


def test_a_message_and_its_outcome(box: Bucket) -> None:
    there = sent(box, "1-1", b"arguments")
    assert there.claim("1-1", "me")
    assert there.message("1-1") == ({"name": "1-1"}, [bytearray(b"arguments")])
    assert box.arrived() == set()
    assert box.take("1-1") is None
    assert there.put("1-1", envelope.written({"given": True}, [[b"value"]]))
    assert box.arrived() == {"1-1"}
    assert box.take("1-1") == ({"given": True}, [bytearray(b"value")])


def test_what_is_put_once_stays(box: Bucket) -> None:
    there, twin = sent(box, "1-1"), sent(box, "1-1")
    assert there.claim("1-1", "one")
    assert not twin.claim("1-1", "the other")
    assert there.put("1-1", envelope.written({"given": 1}, []))
    assert not twin.put("1-1", envelope.written({"given": 2}, []))
    assert box.take("1-1") == ({"given": 1}, [])


def test_two_that_claim_at_one_moment(box: Bucket) -> None:
    for number in range(10):
        sides = [sent(box, f"{number}-1") for _ in range(4)]
        won: list[bool] = []

        def claims(side: FarAddresses, name: str, won: list[bool]) -> None:
            won.append(side.claim(name, "me"))

        threads = [threading.Thread(target=claims, args=(side, f"{number}-1", won)) for side in sides]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert sorted(won) == [False, False, False, True]


def test_a_claim_whose_answer_was_lost_is_ours(box: Bucket, monkeypatch: pytest.MonkeyPatch) -> None:
    there = sent(box, "1-1")
    real = http.client.HTTPConnection.getresponse
    lost: list[int] = []

    def loses(connection: http.client.HTTPConnection) -> Any:
        answer = real(connection)
        if not lost:
            lost.append(answer.status)
            raise OSError("the network has lost the answer")
        return answer

    monkeypatch.setattr(http.client.HTTPConnection, "getresponse", loses)
    monkeypatch.setattr(addresses, "PAUSES", (0.0,))
    assert there.claim("1-1", "me")
    assert lost == [200]


def test_a_cancelled_message_is_never_run(box: Bucket) -> None:
    there = sent(box, "1-1")
    assert not there.is_cancelled("1-1")
    assert box.withdraw("1-1")
    assert not there.claim("1-1", "me")
    other = sent(box, "2-1")
    assert other.claim("2-1", "me")
    assert not box.withdraw("2-1")
    assert other.is_cancelled("2-1")


def test_a_message_that_is_gone(box: Bucket, aws: Client) -> None:
    there = sent(box, "1-1")
    box.discard("1-1")
    # Messages are deleted in batches, so it still exists.
    assert there.message("1-1") == ({"name": "1-1"}, [])
    box.rest()
    assert there.message("1-1") is None
    assert there.claim("1-1", "me")  # its claim was deleted with it
    there.unclaim("1-1")
    assert box.sign_of_life("1-1") is None


@pytest.mark.parametrize("size", [10, 1 << 20])
def test_a_message_that_is_sent_again(box: Bucket, size: int) -> None:
    there = sent(box, "1-1", b"x" * size)
    assert there.claim("1-1", "one that died")
    box.send_again("1-1", "1-2")
    _, _, address, _ = box.command("program", "1-2", ["program"], None)
    box.flush()
    box.rest()
    assert there.message("1-1") is None
    assert not there.claim("1-1", "one that comes late")
    again = FarAddresses(address)
    assert again.claim("1-2", "another")
    assert again.message("1-2") == ({"name": "1-1"}, [bytearray(b"x" * size)])


def test_signs_of_life_and_the_lease(box: Bucket) -> None:
    there = sent(box, "1-1")
    assert box.sign_of_life("1-1") is None
    there.claim("1-1", "me")
    first = box.sign_of_life("1-1")
    there.live("1-1")
    assert None is not first != box.sign_of_life("1-1")
    lease = there.lease()
    assert there.lease_is_fresh(60)
    box.renew()
    assert there.lease() != lease
    time.sleep(1.1)  # times in S3 have a resolution of one second
    assert not there.lease_is_fresh(0.5)
    box.close()
    assert there.lease() is None
    assert not there.lease_is_fresh(60)


def test_prints_are_shown_as_they_come(box: Bucket, capfd: pytest.CaptureFixture[str]) -> None:
    there = sent(box, "1-1")
    there.claim("1-1", "me")
    out, err = there.prints("1-1")
    os.write(out, b"one\n")
    there.live("1-1")
    box.arrived()
    assert list(box.printed()) == [("1-1", 1, b"one\n")]
    os.write(out, b"two\n")
    os.write(err, b"three\n")
    there.put("1-1", envelope.written({}, []))
    assert sorted(box.printed(["1-1"])) == [("1-1", 1, b"two\n"), ("1-1", 2, b"three\n")]
    assert box.tail("1-1", 100) == "one\ntwo\nthree\n"
    assert list(box.printed(["1-1"])) == []
    for fd in (out, err):
        os.close(fd)
    for spool in there._spools:
        spool.close()
    shown = capfd.readouterr()  # the output that the platform would log
    assert (shown.out, shown.err) == ("one\ntwo\n", "three\n")


def test_a_program_puts_nothing_for_a_caller_that_has_ended(account: Account, aws: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    box = Bucket(account)
    there = sent(box, "1-1")
    there.claim("1-1", "me")
    program = FarProgram(there, "1-1", 40.0, lambda name: None)
    box.close()

    def end(self: FarProgram, why: str, status: int = 1) -> NoReturn:
        raise SystemExit(why)

    monkeypatch.setattr(FarProgram, "_end", end)
    with pytest.raises(SystemExit, match="the caller has ended"):
        program._look_after()
    assert "Contents" not in aws("s3").list_objects_v2(Bucket=box.bucket, Prefix=box._box)


@pytest.mark.parametrize("name", ["s3://calls", "calls/mine", "Calls", "x"])
def test_what_is_no_name_of_a_bucket(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(OptionError, match="write the name alone"):
        account_from("@aws", [], {"bucket": name})
    monkeypatch.setenv("ENTANGLE_BUCKET", name)
    with pytest.raises(OptionError, match="write the name alone"):
        Account().bucket_name()


def test_a_large_outcome_goes_in_parts(box: Bucket, aws: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(addresses, "LARGE", 1 << 20)
    # The least that S3 accepts, except for the last part.
    monkeypatch.setattr(addresses, "PART", 5 << 20)
    there = sent(box, "1-1")
    value = os.urandom(12 << 20)
    answered = threading.Thread(target=lambda: wait_until(lambda: "1-1" in box.arrived()))
    answered.start()
    assert there.put("1-1", envelope.written({"given": True}, [[value[: 7 << 20], value[7 << 20 :]]]))
    answered.join()
    assert box.take("1-1") == ({"given": True}, [bytearray(value)])
    assert aws("s3").list_multipart_uploads(Bucket=box.bucket).get("Uploads", []) == []
    # A second outcome does not replace it.
    monkeypatch.setattr(addresses, "LARGE", 1 << 30)
    assert not there.put("1-1", envelope.written({"given": False}, [[value]]))
    box.discard("1-1")


def test_nobody_answers_for_parts(box: Bucket, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(addresses, "LARGE", 1)
    monkeypatch.setattr(addresses, "ANSWERS", 0.1)
    with pytest.raises(FarError, match="needs addresses of its parts"):
        sent(box, "1-1").put("1-1", [b"large"])


def test_a_box_leaves_nothing(account: Account, aws: Client) -> None:
    box = Bucket(account)
    there = sent(box, "1-1", b"x")
    there.claim("1-1", "me")
    there.put("1-1", [b"outcome"])
    prefix = box._box
    tags = aws("s3").get_object_tagging(Bucket=box.bucket, Key=f"{prefix}back/1-1.outcome")["TagSet"]
    assert tags == [{"Key": "entangle", "Value": "call"}]
    box.close()
    assert "Contents" not in aws("s3").list_objects_v2(Bucket=box.bucket, Prefix=prefix)


def test_a_thread_goes_on_after_the_main_thread_has_ended(account: Account, aws: Client) -> None:
    """By then, Python has shut down all thread pools."""
    program = f"""
        import threading
        from entangle._aws.account import Account
        from entangle._aws.bucket import SMALL, Bucket

        box = Bucket(Account(bucket={account.bucket!r}))
        large = [bytes(SMALL + 1)]
        box.send("1-1", large)
        box.flush()

        def late():
            for thread in threading.enumerate():
                if thread.name.startswith("entangle-bucket"):
                    thread.join()
            box.send("1-2", large)
            box.flush()
            box.discard("1-1")
            box.rest()
            box.send("1-3", large)
            box.flush()
            print(*sorted(key for key, _ in box._list("messages/")))
            box.close()

        threading.Thread(target=late).start()
    """
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(program)], capture_output=True, text=True, timeout=50)
    assert (done.stdout, done.returncode) == ("messages/1-2 messages/1-3\n", 0), done.stderr


def test_a_closed_box_starts_no_threads(account: Account, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(buckets, "AHEAD", 1)
    box = Bucket(account)
    names = ["1-1", "1-2", "1-3"]
    for name in names:
        box._put(f"back/{name}.outcome", b"".join(envelope.written({}, [])))
    assert box.arrived() == set(names)
    box.close()
    for name in names:
        box.take(name)
    assert [thread.name for thread in threading.enumerate() if thread.name.startswith("entangle-bucket")] == []


def test_boxes_of_callers_that_are_gone_are_removed(account: Account, aws: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    dead = Bucket(account)
    dead.rest()
    here = f"{buckets.PREFIX}p{os.getpid()}-"
    gone = f"{buckets.PREFIX}p999999999-"
    for key in (f"{dead._box}lease", f"{dead._box}messages/1-1"):
        aws("s3").put_object(Bucket=dead.bucket, Key=key.replace(here, gone), Body=b"x")
    monkeypatch.setattr(buckets, "LAPSED", 0.0)
    box = Bucket(account)
    found = aws("s3").list_objects_v2(Bucket=dead.bucket, Prefix=gone)
    assert "Contents" not in found
    box.close()
    dead.close()


def test_no_bucket(account: Account, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(OptionError, match="name one, @aws"):
        Bucket(Account())
    with pytest.raises(UnreachableError, match="there is no bucket 'entangle-nowhere'"):
        Bucket(Account(bucket="entangle-nowhere"))


def test_addresses_that_would_expire(account: Account, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Account, "expires", lambda self: 300.0)
    with pytest.raises(OptionError, match="expire in 300 s"):
        Bucket(account)


def test_a_call_that_would_outlive_its_addresses(box: Bucket, monkeypatch: pytest.MonkeyPatch) -> None:
    box.reach(3600)
    monkeypatch.setattr(Account, "expires", lambda self: 3600.0)
    box.reach(None)
    box.reach(2000)
    with pytest.raises(OptionError, match=r"3600 s, and its timeout= is 3000 s.*job_role="):
        box.reach(3000)


def test_sessions_of_a_role_end(aws_environment: Emulator, bucket: str, aws: Client) -> None:
    iam = aws("iam")
    role = iam.create_role(RoleName="entangle-caller", AssumeRolePolicyDocument="{}")["Role"]["Arn"]
    assert Account(bucket=bucket).expires() is None
    left = Account(bucket=bucket, role=role).expires()
    assert left is not None
    assert 3000 < left <= 3600
    made = Bucket(Account(bucket=bucket, role=role))
    assert 3000 < made._addresses.seconds <= 3600
    made.close()


def test_an_expired_address(box: Bucket) -> None:
    said = b"<Error><Code>AccessDenied</Code><Message>Request has expired</Message></Error>"
    assert "log in with credentials that last longer" in str(addresses.refused("GET", 403, said))
    assert json.dumps(str(addresses.refused("GET", 403, b"no XML"))).endswith('no XML"')
