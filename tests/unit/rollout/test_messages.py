"""Episodes of messages: roles, tools and stop strings, with a scripted engine and a template made for the test."""

from __future__ import annotations

import re
from typing import Any

import pytest

from rlpost.config.compose import compose
from rlpost.config.schema import Config, RolloutConfig
from rlpost.envs.messages import Message
from rlpost.errors import ConfigError, ModelError
from rlpost.record.jsonl import from_line, to_line
from rlpost.rollout.chat import Chat
from rlpost.rollout.collect import Collector
from rlpost.rollout.engine.protocol import Sampling
from rlpost.rollout.scripted import ScriptedEngine
from rlpost.tasks.evaluate import decodings
from rlpost.tasks.prompts import _lengths, _Prompts
from rlpost.tasks.rehearsal import rehearse
from rlpost.types import Ending, EpisodeSpec, Finish, ModelInput, Trajectory
from tests.unit.calculator import Calculator
from tests.unit.chat_templates import CHATML, chatml, llama

SPEC = EpisodeSpec("default", "train", 0, 0, 0, 5, 7)


def solves(conversation: str, seed: int) -> str:
    """Calls the tool, then says its result."""
    if found := re.findall(r'"sum": (\d+)', conversation):
        return str(found[-1])
    a, b = re.findall(r"(\d+) \+ (\d+) =", conversation)[-1]
    return f'<tool_call>{{"name": "add", "arguments": {{"a": {a}, "b": {b}}}}}</tool_call>'


def played(chat: Chat, script: Any = solves, stop: tuple[str, ...] = ()) -> Trajectory:
    engine = ScriptedEngine(script, chat, max_model_len=4096)
    collector = Collector(engine, "calculator", Calculator, chat, max_live=1, env_timeout_s=30.0)
    (trajectory,) = collector.collect([SPEC], Sampling(1.0, 500, stop), 0)
    return trajectory


def test_results_of_tools_are_context_and_never_learnt() -> None:
    chat = Chat(llama())
    episode = played(chat)
    first, second = episode.turns
    assert (episode.ending, episode.success) == (Ending.TERMINATED, True)
    assert [turn.outcome for turn in episode.turns] == ["CALL", "SUM"]
    assert first.observation.startswith("[user]\n1 + 1 =?\n[assistant]\n2\n[user]\n")
    assert second.observation == f'[tool]\n{{"sum": {second.answer}}}'
    context = chat._tokenizer.decode(second.context_ids)
    assert context.startswith("<|start_header_id|>ipython<|end_header_id|>")
    assert f'{{"sum": {second.answer}}}' in context
    learnt = [t for t, mask in zip(episode.token_ids, episode.loss_mask, strict=True) if mask]
    assert chat._tokenizer.decode(learnt) == f"{first.answer}<|eot_id|>{second.answer}<|eot_id|>"
    assert from_line(to_line(episode)) == episode


def test_what_a_tool_says_of_control_tokens_is_text() -> None:
    """The description of the tool spells both templates' ends of turns."""
    for tokenizer in (llama(), chatml(CHATML.replace("{% for m in", "{{ tools | tojson }}{% for m in", 1))):
        episode = played(Chat(tokenizer))
        eos = tokenizer.eos_token_id
        assert episode.turns[0].context_ids.count(eos) == 3 + (tokenizer.eos_token == "<|im_end|>")
        assert tokenizer.decode(episode.turns[0].context_ids).count(tokenizer.eos_token) > 3


def test_an_answer_that_a_stop_string_ended_is_closed_before_what_follows() -> None:
    chat = Chat(llama())
    episode = played(chat, lambda text, seed: solves(text, seed) + " and so on", ("</tool_call>",))
    first, second = episode.turns
    assert (first.finish, second.finish) == (Finish.STOP_STRING, Finish.STOP)
    assert first.answer.startswith("<tool_call>")
    assert first.answer.endswith("</tool_call>")
    assert chat.eos_id not in first.answer_ids
    assert second.context_ids[0] == chat.eos_id
    assert from_line(to_line(episode)).turns[0].finish is Finish.STOP_STRING


def test_a_template_that_cannot_say_it_stops_the_run_with_the_reason() -> None:
    with pytest.raises(ModelError, match="does not tell the model of the tools"):
        played(Chat(chatml()))


def test_a_conversation_grows_and_stays_as_it_was() -> None:
    one = ModelInput((1, 2))
    assert one.followed_by((3,)) == ModelInput((1, 2, 3))
    assert (one, len(one.followed_by((3,)))) == (ModelInput((1, 2)), 3)


def config(**rollout: Any) -> Config:
    words = [f"rollout.{key}={value}" for key, value in rollout.items()]
    where = "env=tests.unit.calculator:Calculator"
    return compose(["experiment=own_ppo", where, "train_variant=default", "eval_variants=[default]", *words])


def test_what_the_template_cannot_say_is_refused_before_anything_is_started() -> None:
    rehearse(config(), Chat(llama()))
    with pytest.raises(ModelError, match="does not tell the model of the tools"):
        rehearse(config(), Chat(chatml()))


def test_an_environment_that_fails_its_rehearsal_is_the_rollouts_business(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """What it said before is looked at all the same."""

    def fails(self: Calculator, action: str) -> Any:
        raise RuntimeError("no sums")

    monkeypatch.setattr(Calculator, "step", fails)
    rehearse(config(), Chat(llama()))
    with pytest.raises(ModelError, match="does not tell the model of the tools"):
        rehearse(config(), Chat(chatml()))


def test_settings_of_the_command_line_reach_the_conversation() -> None:
    cfg = config(
        system_prompt="Be brief: 1.10", stop='[</a>,"\\n"]', template_args="{enable_thinking: false}"
    )
    assert cfg.rollout.template_args == {"enable_thinking": False}
    assert (cfg.rollout.system_prompt, cfg.rollout.stop) == ("Be brief: 1.10", ["</a>", "\n"])
    (one,) = compose(["experiment=own_ppo", "rollout.template_args.n=3"]).rollout.template_args.items()
    assert one == ("n", 3)
    with pytest.raises(ConfigError, match="never reads it"):
        Chat(llama(), cfg.rollout)
    cfg.rollout.template_args.clear()
    assert "Be brief: 1.10" in Chat(llama(), cfg.rollout).prompt_text("Make 24.")


def test_one_way_of_asking_for_nothing() -> None:
    assert Chat(llama(), RolloutConfig()).prompt_ids("Make 24.") == Chat(llama()).prompt_ids("Make 24.")


def test_every_decoding_has_the_stop_strings() -> None:
    assert [each.stop for each in decodings(config(stop="[a,b]")).values()] == [("a", "b")] * 2


def test_prompts_of_messages_that_do_not_fit_are_counted() -> None:
    """A byte is a token at most; the frame is that of the roles."""
    cfg, chat = config(max_model_len=100, max_new_tokens=10), Chat(llama())
    told = Message.of("system", "Add.")
    listed = [(f"line {n}", (told, Message.of("user", "?" * n))) for n in (1, 200)]
    (sentence,) = _lengths(cfg, chat, _Prompts("default", "eval", listed))
    assert sentence.startswith("1 of 2 prompts of default (eval) do not fit")
    assert "(line 200)" in sentence
