"""Function calls as text, in the format of Qwen-Agent, to which the Qwen2-VL paper points for its agents.

Source: github.com/QwenLM/Qwen-Agent, qwen_agent/llm/fncall_prompts/qwen_fncall_prompt.py, the English template. Tools
stand in the system message. Calls, results and what is said of them are one assistant turn, split by four keywords,
which are plain text and no special tokens. docs/data_format.md has the whole of it.
"""

import json
from collections.abc import Mapping, Sequence
from typing import Any

from data.errors import FormatError

FUNCTION, ARGS, RESULT, RETURN = (f"\u273f{word}\u273f" for word in ("FUNCTION", "ARGS", "RESULT", "RETURN"))
TOOLS_HEAD = "# Tools\n\n## You have access to the following tools:\n\n"
AS_JSON = "Format the arguments as a JSON object."
AS_CODE = "Enclose the code within triple backticks (`) at the beginning and end of the code."
CODE_TOOL = "code_interpreter"  # its argument is code between FENCEs and no JSON
FENCE = "```"
# What stands before and after the names of the tools.
ONE_CALL = (
    "\n\n## When you need to call a tool, please insert the following command in your reply, which can be called "
    f"zero or multiple times according to your needs:\n\n{FUNCTION}: The tool to use, should be one of [",
    f"]\n{ARGS}: The input of the tool\n{RESULT}: Tool results\n"
    f"{RETURN}: Reply based on tool results. Images need to be rendered as ![](url)",
)
SEVERAL_CALLS = (
    "\n\n## Insert the following command in your reply when you need to call N tools in parallel:\n\n"
    f"{FUNCTION}: The name of tool 1, should be one of [",
    f"]\n{ARGS}: The input of tool 1\n{FUNCTION}: The name of tool 2\n{ARGS}: The input of tool 2\n...\n"
    f"{FUNCTION}: The name of tool N\n{ARGS}: The input of tool N\n"
    f"{RESULT}: The result of tool 1\n{RESULT}: The result of tool 2\n...\n{RESULT}: The result of tool N\n"
    f"{RETURN}: Reply based on tool results. Images need to be rendered as ![](url)",
)


def tools_text(tools: Sequence[Mapping[str, Any]], parallel: bool) -> str:
    """What the system message says of the tools, each `{"type": "function", "function": {...}}`. Raises FormatError."""
    described = []
    for tool in tools:
        name, description, parameters = (_function(tool).get(key) for key in ("name", "description", "parameters"))
        if not (isinstance(name, str) and name and isinstance(description, str) and isinstance(parameters, dict)):
            raise FormatError(f"a tool needs name, description and parameters (a JSON schema), got {str(tool)[:80]}")
        how = AS_CODE if name == CODE_TOOL else AS_JSON
        described.append(f"### {name}\n\n{name}: {description} Parameters: {_json(parameters)} {how}")
    before, after = SEVERAL_CALLS if parallel else ONE_CALL
    names = ",".join(_function(tool)["name"] for tool in tools)
    return TOOLS_HEAD + "\n\n".join(described) + before + names + after


def call_text(call: Mapping[str, Any]) -> str:
    """One entry of `tool_calls`; its arguments are an object, or a string that is written as it is."""
    function = _function(call)
    name, arguments = function.get("name"), function.get("arguments")
    if not (isinstance(name, str) and name and isinstance(arguments, str | dict)):
        raise FormatError(f"a tool call needs a function with name and arguments, got {str(call)[:80]}")
    text = arguments if isinstance(arguments, str) else _json(arguments)
    return f"{FUNCTION}: {name}\n{ARGS}: " + ("\n" if text.startswith(FENCE) else "") + text


def checked_tools(sample: Mapping[str, Any]) -> Sequence[Mapping[str, Any]]:
    """The `tools` of a sample, none if it has no such field. Raises FormatError."""
    tools = sample.get("tools") or []
    if not isinstance(tools, list):
        raise FormatError(f"`tools` must be a list, got {type(tools).__name__}")
    return tools


def checked_calls(message: Mapping[str, Any], tools: Sequence[Mapping[str, Any]], parallel: bool) -> list[Any]:
    """The `tool_calls` of an assistant's message, each of a tool that is listed, if any are. Raises FormatError."""
    calls = message.get("tool_calls") or []
    if not isinstance(calls, list) or (calls and message["role"] != "assistant"):
        raise FormatError(f"`tool_calls` is a list in a message of the assistant, got {str(message)[:80]}")
    names = [_function(tool).get("name") for tool in tools]
    for call in calls:
        if names and _function(call).get("name") not in names:
            raise FormatError(f"call of {_function(call).get('name')!r}, which is not among the tools {names}")
    if len(calls) > 1 and not parallel:
        raise FormatError(
            f"{len(calls)} calls in one message; its tools must be listed for that: set `parallel_calls` of the sample"
        )
    return calls


def check_results(calls: Sequence[Mapping[str, Any]], results: Sequence[Mapping[str, Any]]) -> None:
    """Each call has its result, in order; ids tell where both sides have them. Raises FormatError."""
    if results and len(results) != len(calls):
        raise FormatError(f"{len(calls)} calls are followed by {len(results)} tool messages")
    for call, result in zip(calls, results, strict=False):
        asked, answered = call.get("id"), result.get("tool_call_id")
        if asked is not None and answered is not None and asked != answered:
            raise FormatError(f"the result of call {answered!r} stands where that of {asked!r} belongs")


def _function(entry: Any) -> Mapping[str, Any]:
    function = entry.get("function") if isinstance(entry, dict) else None
    if not isinstance(function, dict):
        raise FormatError(f'expected {{"type": "function", "function": {{...}}}}, got {str(entry)[:80]}')
    return function


def _json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)
