"""The test kit: the laws that every backend keeps, and the tools to check code that uses one.

Needs `pip install mcp-task-runtime[testing]`, and no particular test runner. A backend's author writes

    check_task_store(lambda clock, location: MyTaskStore(location, clock=clock), capabilities=["listing"])

and is told with a sentence which law is broken, and how.
"""
