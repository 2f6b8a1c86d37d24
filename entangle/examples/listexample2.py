"""Choices within choices: an inbox that sorts itself.

A lambda may choose a node with lambdas in its own parentheses. A list may hold nodes and lambdas.

Prints what has become of each letter.
"""

from entangle.dataflow import dataflow, process, thread

INBOX = ["invoice 17: urgent", "invoice 18", "win a prize", "hello from Ada"]


@dataflow
@thread
def archive(letter: str) -> str:
    return f"{letter} (archived)"


@dataflow
@process
def pay(letter: str) -> str:
    return f"{letter} (paid)"


@dataflow
@thread
def ring(letter: str) -> str:
    return f"{letter} (urgent: rang the owner)"


@dataflow
@thread
def discard(letter: str) -> str:
    return f"{letter} (discarded)"


@dataflow
def read(letter: str) -> str:
    return letter


def main() -> None:
    flow = read(
        lambda letter: (
            discard()
            if "prize" in letter
            else [
                archive(),
                lambda letter: pay(lambda bill: ring() if "urgent" in bill else None) if letter.startswith("invoice") else None,
            ]
        )
    )
    for letter in INBOX:
        print(letter)
        for done in flow(letter):
            print("   ", done)


if __name__ == "__main__":
    main()
