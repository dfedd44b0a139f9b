"""A mock LLM server over real HTTP, for the tests of memskill and of its users.

>>> from memskill_cli.testing.server import MockLLMServer
>>> with MockLLMServer({"judge": '{"explanation": "same", "score": 1}'}) as server:
...     print(server.url)  # doctest: +SKIP
"""
