from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, Field


class ExecuteTask(BaseModel):
    type: Literal["ExecuteTask"]
    token: str
    ti: dict[str, Any]
    log_path: str | None = None
    bundle_info: Any = None
    dag_rel_path: str = "d.py"
    display_name: str = "stand-in"


class Callback(BaseModel):
    id: str
    data: dict[str, Any] = {}


class ExecuteCallback(BaseModel):
    type: Literal["ExecuteCallback"]
    token: str
    callback: Callback
    log_path: str | None = None
    bundle_info: Any = None
    dag_rel_path: str = "d.py"
    display_name: str = "stand-in"


class TestConnection(BaseModel):
    type: Literal["TestConnection"]
    token: str


ExecutorWorkload = Annotated[ExecuteTask | ExecuteCallback | TestConnection, Field(discriminator="type")]
