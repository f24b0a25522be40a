"""The deadlines of an exchange, as the sweep applies them: of the route, of the client (gRPC), of the body, of silence."""

from __future__ import annotations

from meshguard.model.reasons import REQUEST_TIMEOUT, UPSTREAM_TIMEOUT, Reason
from meshguard.pipeline.state import ExchangeState

__all__ = ["TimedExchange"]


class TimedExchange(ExchangeState):
    """What an exchange does with the time. `refuse` is the exchange's."""

    __slots__ = ()

    def refuse(self, reason: Reason, detail: str = "") -> None:
        """meshguard answers itself."""
        raise NotImplementedError

    @property
    def waiting_for_client(self) -> bool:
        """The next octet has to come from the client (and is not held back by us)."""
        return not self._request_complete and not (self._door is not None and self._door.request_held)

    def expire(self, now: float) -> None:
        """One look by the sweep: applies the deadlines of the route."""
        plan = self.plan
        limits = self.peer.limits
        if plan is None:
            return
        if plan.total_s and now - self.started > plan.total_s:
            self._deadline(UPSTREAM_TIMEOUT, "total time")
        elif self.deadline and now > self.deadline:
            self._deadline(UPSTREAM_TIMEOUT, "grpc-timeout")
        elif self.grpc_end is None and self.waiting_for_client:  # a call may be silent between two messages, see the last case
            held_s = self._door.held_s if self._door is not None else 0.0  # that was our doing, not the client's
            too_long = limits.body_total_s and now - self.started - held_s > limits.body_total_s
            if now - self._touched > limits.body_idle_s or too_long:
                self.aborted = "deadline"
                self.refuse(REQUEST_TIMEOUT, "body")
        elif self._connection is None:
            return  # the cluster has its own deadlines for connecting and queueing
        elif not self.answered and (self.grpc_end is None or self._request_complete):
            if now - max(self.forwarded, self._touched) > plan.response_s:
                self._deadline(UPSTREAM_TIMEOUT, "response head")
        elif now - self._touched > limits.idle_s:
            self._deadline(UPSTREAM_TIMEOUT, "no progress")

    def _deadline(self, reason: Reason, detail: str) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.drop(reason)
        self.aborted = "deadline"
        self.refuse(reason, detail)
