"""The server with the interface of OpenAI."""
