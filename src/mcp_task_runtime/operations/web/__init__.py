"""A web page for the people who operate a server: find tasks, follow them, act on them, answer what they ask.

Needs the extra `web`. As a command, on this machine alone:

    mcp-tasks --store sqlite:///tasks.db web

Inside an application that exists, behind its own authentication:

    from mcp_task_runtime.operations.web import dashboard

    app.mount("/tasks", dashboard(store, behind_auth=True))

The page shows and ends the tasks of all owners, so `dashboard` lets in:

- by default, requests from this machine to a loopback name alone, and none that a proxy passed on,
- with `token`, requests of a browser that has signed in with it,
- with `behind_auth=True`, every request: the application has checked who may see this.

What a form sends must come from a page of the dashboard: a token that is bound to a cookie, and the `Origin` that the
browser names. No script or style runs but the dashboard's own files. Arguments and results of tasks are masked until
an operator asks for them; the questions that tasks ask are shown, because a person is to answer them. Addresses hold
no secret: a task is named there by the beginning of its identifier.

Where the servers have an `Inbox` with the address of the dashboard, a client that cannot show a form, but can have its
user open an address, gets that of a page for the one question that its task asks:

    tasks = Tasks(store, inbox=Inbox(3600, url="https://ops.example/tasks", secret=secret))
    app.mount("/tasks", dashboard(store, behind_auth=True, inbox_secret=secret))

That page, `/question`, needs no sign-in: anyone who has the address may answer, until the question is answered or its
time has passed. The page shows nothing else. The authentication of your application has to let it pass.

Without JavaScript everything works but the live part.
"""

from mcp_task_runtime.operations.web._app import dashboard

__all__ = ["dashboard"]
