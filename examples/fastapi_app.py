"""An MCP server with tasks inside a FastAPI application that has routes, dependencies and a lifespan of its own.

    pip install fastapi 'mcp-task-runtime[mcp]'
    python examples/fastapi_app.py --port 8000 --store sqlite:///orders.db --workers 2

The tool at `/tools/mcp` asks its user, then orders from a shop. When the shop has delivered it calls a route of
the application, which ends the task. Any worker process may get any of these requests.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Annotated

import uvicorn
from fastapi import APIRouter, Body, Depends, FastAPI, HTTPException, Request
from mcp.server import MCPServer
from pydantic import BaseModel

from mcp_task_runtime import InvalidTransitionError, ServerTaskContext, TaskNotFoundError, open_store
from mcp_task_runtime.server import Tasks


class Shop:
    """Stands for what an application opens when it starts: an HTTP client, a pool of connections."""

    async def order(self, item: str, task_id: str) -> None:
        """Order something, to be reported at `/deliveries/{task_id}`."""


@asynccontextmanager
async def open_shop() -> AsyncIterator[Shop]:
    yield Shop()


class Confirmation(BaseModel):
    confirm: bool


def make_server(app: FastAPI, tasks: Tasks) -> MCPServer:
    """Return the MCP server; its tools reach what the application has opened."""
    mcp = MCPServer("shop")
    tasks.install(mcp)

    @tasks.tool(required=True)
    async def order(item: str, task: ServerTaskContext) -> str:
        """Order something; the result comes when it was delivered."""
        answer = await task.elicit(f"Order {item}?", Confirmation)
        if answer.action != "accept" or not answer.data.confirm:
            return "not ordered"
        await task.update_status("Ordered")
        task.detach()
        shop: Shop = app.state.shop
        await shop.order(item, task.task_id)
        return ""  # not used: the result comes from outside

    return mcp


def get_tasks(request: Request) -> Tasks:
    tasks: Tasks = request.app.state.tasks
    return tasks


router = APIRouter()


@router.get("/health")
async def health() -> str:
    return "ok"


@router.post("/deliveries/{task_id}", status_code=204)
async def delivered(
    task_id: str, message: Annotated[str, Body(embed=True)], tasks: Annotated[Tasks, Depends(get_tasks)]
) -> None:
    """End the task of an order, whichever process made it."""
    try:
        await tasks.complete(task_id, message)
    except TaskNotFoundError:
        raise HTTPException(404, "No such order") from None
    except InvalidTransitionError:
        raise HTTPException(409, "The order has ended already") from None


def make_app() -> FastAPI:
    """Return the application; each worker process makes its own."""

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        # A mounted application's own lifespan is not run. Inside the application's: work ends before the shop closes.
        async with open_shop() as app.state.shop, mcp.session_manager.run():
            yield

    app = FastAPI(lifespan=lifespan)
    app.include_router(router)
    app.state.tasks = Tasks(open_store(os.environ.get("TASK_STORE", "memory://")))
    mcp = make_server(app, app.state.tasks)
    # Without sessions any worker serves clients of protocol 2025-11-25 too. `host` or `transport_security` admits
    # requests for other host names than localhost.
    app.mount("/tools", mcp.streamable_http_app(stateless_http=True))
    return app


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--store", default="memory://", help="URL of the store; one that workers can share")
    parser.add_argument("--workers", type=int, default=1)
    options = parser.parse_args()
    os.environ["TASK_STORE"] = options.store
    uvicorn.run(
        "fastapi_app:make_app",
        factory=True,
        app_dir=os.path.dirname(os.path.abspath(__file__)),
        port=options.port,
        workers=options.workers,
        timeout_graceful_shutdown=3,  # clients that listen would keep it open
    )


if __name__ == "__main__":
    main()
