"""What the server counts, in Prometheus' words."""

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from znatok.serve.dispatch import Dispatcher

SECONDS = (0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300)


class Meters:
    """Counters of one server."""

    def __init__(self, dispatcher: Dispatcher) -> None:
        """Count from zero; ``dispatcher`` is asked how much it has to do."""
        self._registry = registry = CollectorRegistry()
        by_model = ["model"]
        self.requests = Counter("znatok_requests", "requests for an answer", ["model", "outcome"], registry=registry)
        self.prompt_tokens = Counter("znatok_prompt_tokens", "tokens of dialogues read", by_model, registry=registry)
        self.tokens = Counter("znatok_completion_tokens", "tokens said", by_model, registry=registry)
        self.first = Histogram(
            "znatok_first_token_seconds", "to the first text", by_model, buckets=SECONDS, registry=registry
        )
        self.whole = Histogram(
            "znatok_request_seconds", "to an answer's end", by_model, buckets=SECONDS, registry=registry
        )
        waiting = Gauge("znatok_requests_waiting", "requests in the queue", registry=registry)
        waiting.set_function(lambda: dispatcher.waiting)
        running = Gauge("znatok_requests_running", "requests being computed", registry=registry)
        running.set_function(lambda: dispatcher.running)

    def page(self) -> bytes:
        """Return all of them as text."""
        return generate_latest(self._registry)
