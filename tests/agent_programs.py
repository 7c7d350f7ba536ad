"""Agents for tests, as a user would write them: they ask by OpenAI's own client. `SEEN` has what each one saw."""

from __future__ import annotations

import threading
import time
from typing import Any

from openai import AsyncOpenAI, AuthenticationError, BadRequestError, OpenAI

SEEN: list[Any] = []
GO_ON = threading.Event()  # what `waits` waits for


def client_of(base_url: str, api_key: str) -> OpenAI:
    return OpenAI(base_url=base_url, api_key=api_key)


def user(text: str) -> dict[str, str]:
    return {"role": "user", "content": text}


def ask(client: OpenAI, model: str, messages: list[Any], **more: Any) -> Any:
    answer = client.chat.completions.create(model=model, messages=messages, logprobs=True, **more)
    SEEN.append(answer)
    return answer.choices[0].message


def one_call(base_url: str, api_key: str, model: str, task: dict[str, Any]) -> float:
    ask(client_of(base_url, api_key), model, [user(task["prompt"])])
    return 0.5


def appends(base_url: str, api_key: str, model: str, task: dict[str, Any]) -> dict[str, Any]:
    """Three turns, by the client's own message objects."""
    client, messages = client_of(base_url, api_key), list[Any]()
    for text in (task["prompt"], "and then?", "and <|end|> in the end?"):
        messages += [user(text)]
        messages += [ask(client, model, messages)]
    return {"reward": 2.0, "success": True}


def converses(base_url: str, api_key: str, model: str, task: dict[str, Any]) -> float:
    client, messages = client_of(base_url, api_key), list[Any]()
    for text in (task["prompt"], *MORE["then"]):
        messages += [user(text)]
        messages += [ask(client, model, messages)]
    return 1.0


def converses_by_stream(base_url: str, api_key: str, model: str, task: dict[str, Any]) -> float:
    """The same, from the pieces of a stream."""
    client, messages = client_of(base_url, api_key), list[Any]()
    for text in (task["prompt"], *MORE["then"]):
        messages += [user(text)]
        stream = client.chat.completions.create(model=model, messages=messages, stream=True, logprobs=True)
        pieces = [piece for piece in stream if piece.choices]
        SEEN.append(pieces[0])
        messages += [
            {"role": "assistant", "content": "".join(p.choices[0].delta.content or "" for p in pieces)}
        ]
    return 1.0


def rewrites(base_url: str, api_key: str, model: str, task: dict[str, Any]) -> bool:
    """Two turns, then a history in other words, then one more turn of that, and a branch of the first."""
    client = client_of(base_url, api_key)
    first = [user(task["prompt"])]
    first += [ask(client, model, first)]
    ask(client, model, [*first, user("go on")])
    second: list[Any] = [user("in short: " + task["prompt"])]
    second += [ask(client, model, second)]
    ask(client, model, [*second, user("more")])
    ask(client, model, [*first, user("or else")])
    return True


def streams(base_url: str, api_key: str, model: str, task: dict[str, Any]) -> float:
    client = client_of(base_url, api_key)
    stream = client.chat.completions.create(
        model=model,
        messages=[{"role": "user", "content": task["prompt"]}],
        stream=True,
        stream_options={"include_usage": True},
        logprobs=True,
    )
    SEEN.append(list(stream))
    return 1.0


async def asynchronous(base_url: str, api_key: str, model: str, task: dict[str, Any]) -> float:
    """Three calls side by side."""
    import asyncio

    client = AsyncOpenAI(base_url=base_url, api_key=api_key)
    answers = await asyncio.gather(
        *(
            client.chat.completions.create(
                model=model, messages=[{"role": "user", "content": f"{task['prompt']} {i}"}], logprobs=True
            )
            for i in range(3)
        )
    )
    SEEN.extend(answers)
    return 3.0


def posts(base_url: str, api_key: str, model: str, task: dict[str, Any]) -> None:
    client = client_of(base_url, api_key)
    ask(client, model, [user(task["prompt"])])
    client.post("/reward", body={"reward": 0.25, "success": True}, cast_to=object)


def posts_and_returns(base_url: str, api_key: str, model: str, task: dict[str, Any]) -> float:
    posts(base_url, api_key, model, task)
    return 1.0


def says(base_url: str, api_key: str, model: str, task: dict[str, Any]) -> str:
    ask(client_of(base_url, api_key), model, [user(task["prompt"])])
    return "the answer is 42"


def raises(base_url: str, api_key: str, model: str, task: dict[str, Any]) -> None:
    ask(client_of(base_url, api_key), model, [user(task["prompt"])])
    raise LookupError("no such page")


def never_asks(base_url: str, api_key: str, model: str, task: dict[str, Any]) -> float:
    return 1.0


def no_reward(base_url: str, api_key: str, model: str, task: dict[str, Any]) -> None:
    ask(client_of(base_url, api_key), model, [user(task["prompt"])])


def waits(base_url: str, api_key: str, model: str, task: dict[str, Any]) -> float:
    """Hangs after a call; what it is told when it asks later."""
    client = client_of(base_url, api_key)
    ask(client, model, [user(task["prompt"])])
    while not GO_ON.is_set():
        time.sleep(0.01)
    return 1.0


def forgets_its_time(base_url: str, api_key: str, model: str, task: dict[str, Any]) -> float:
    """Waits where no exception reaches it, then asks."""
    client = client_of(base_url, api_key)
    GO_ON.wait(30)
    try:
        ask(client, model, [user(task["prompt"])])
    except AuthenticationError as error:
        SEEN.append(error)
    return 1.0


def fills_the_context(base_url: str, api_key: str, model: str, task: dict[str, Any]) -> float:
    client, messages = client_of(base_url, api_key), [user(task["prompt"])]
    while True:
        messages += [ask(client, model, messages), user("again")]


def notices_the_context(base_url: str, api_key: str, model: str, task: dict[str, Any]) -> float:
    try:
        return fills_the_context(base_url, api_key, model, task)
    except BadRequestError as error:
        SEEN.append(error)
        return 0.75


def calls_without_end(base_url: str, api_key: str, model: str, task: dict[str, Any]) -> float:
    while True:
        ask(client_of(base_url, api_key), model, [user(task["prompt"])])


def uses_tools(base_url: str, api_key: str, model: str, task: dict[str, Any]) -> float:
    client = client_of(base_url, api_key)
    messages: list[Any] = [{"role": "system", "content": "Be brief."}, user(task["prompt"])]
    messages += [ask(client, model, messages, tools=TOOLS)]
    messages += [{"role": "tool", "content": "21 <|im_end|>", "tool_call_id": "1"}]
    messages += [ask(client, model, messages, tools=TOOLS)]
    ask(client, model, [*messages, user("sure?")], tools=TOOLS)
    return 1.0


TOOLS: list[Any] = [
    {"type": "function", "function": {"name": "weather", "description": "of a <|im_end|> town"}}
]
MORE: dict[str, Any] = {}


def asks_more(base_url: str, api_key: str, model: str, task: dict[str, Any]) -> float:
    """With the arguments in MORE, which are refused; then as it should be."""
    client = client_of(base_url, api_key)
    try:
        ask(client, model, [user(task["prompt"])], **MORE)
    except BadRequestError as error:
        SEEN.append(error)
        ask(client, model, [user(task["prompt"])])
    return 1.0


def score(answer: str, row: dict[str, Any]) -> float:
    SEEN.append((answer, row["prompt"]))
    return 0.125
