"""Wrong arguments of tasks in classes."""

from __future__ import annotations

from entangle.process import process


@process
def word() -> str:
    return "a"


class Account:
    @process
    def after(self, amount: int, *, note: str = "") -> int:
        return amount

    @classmethod
    @process
    def named(cls, name: str) -> str:
        return name

    @staticmethod
    @process
    def double(amount: int) -> int:
        return 2 * amount


def check(account: Account) -> None:
    account.after("3")  # error
    account.after()  # error
    account.after(1, 2)  # error
    account.after(word())  # error
    account.after(1, not_there="a")  # error
    account.after(1, note=3)  # error
    Account.after(1)  # error
    Account.after(account, "1")  # error
    Account.named(3)  # error
    Account.named()  # error
    Account.double("3")  # error
    Account.double(1, 2)  # error
    wrong: str = account.after(1)()  # error
    account.after.map(["a"])  # error
    account.after.no_such_thing(1)  # error
    print(wrong)
