"""``znatok serve``: base and tuned models over the OpenAI API, each answer what the chat would have said."""
