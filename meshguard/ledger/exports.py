"""Decisions in the words of others: OCSF (API Activity 6003, HTTP Activity 4002) and OPA decision logs."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from typing import Any

__all__ = ["OCSF_VERSION", "ocsf", "opa"]

OCSF_VERSION = "1.3.0"
API_ACTIVITY, HTTP_ACTIVITY = 6003, 4002
# activity_id of 6003: create, read, update, delete; of 4002: one per method
_API = {"POST": 1, "GET": 2, "HEAD": 2, "OPTIONS": 2, "QUERY": 2, "PUT": 3, "PATCH": 3, "DELETE": 4}
_HTTP = {"CONNECT": 1, "DELETE": 2, "GET": 3, "HEAD": 4, "OPTIONS": 5, "POST": 6, "PUT": 7, "TRACE": 8}
_OTHER = 99
_HIDDEN = ["/input/query", "/input/headers", "/input/body"]


def _parts(entry: Mapping[str, Any]) -> tuple[Mapping[str, Any], Mapping[str, Any], Mapping[str, Any], Mapping[str, Any]]:
    who, what, why, outcome = (entry.get(name) or {} for name in ("who", "what", "why", "outcome"))
    return who, what, why, outcome


def ocsf(entry: Mapping[str, Any], class_uid: int = API_ACTIVITY) -> dict[str, Any]:
    """An event of class 6003 or 4002 with the security control profile. `time` is in milliseconds, as the schema asks."""
    who, what, why, outcome = _parts(entry)
    method = what.get("method", "")
    activity = (_API if class_uid == API_ACTIVITY else _HTTP).get(method, _OTHER)
    allowed = why.get("verdict") == "allow"
    denied = why.get("verdict") in ("deny", "refuse")
    status = outcome.get("status", 0)
    moment = datetime.fromisoformat(entry["time"])
    made: dict[str, Any] = {
        "action_id": 1 if allowed else 2 if denied else _OTHER,
        "activity_id": activity,
        "actor": {"user": {"uid": who["principal"], "type_id": 3} if who.get("principal") else {"name": "anonymous", "type_id": 0}},
        "category_uid": class_uid // 1000,
        "class_uid": class_uid,
        "disposition_id": 1 if allowed else 2 if denied else _OTHER,
        "dst_endpoint": _told({"hostname": what.get("host"), "port": what.get("port"), "svc_name": what.get("cluster")}),
        "duration": outcome.get("duration_us", 0) // 1000,
        "http_request": {
            "http_method": method,
            "length": what.get("request_bytes", 0),
            "url": {"hostname": what.get("host", ""), "path": what.get("path", ""), "scheme": "https" if what.get("tls") else "http"},
        },
        "http_response": {"code": status, "length": what.get("response_bytes", 0)},
        "metadata": {
            "correlation_uid": entry.get("trace_id", ""),
            "product": {"name": "meshguard", "vendor_name": "meshguard"},
            "profiles": ["security_control"],
            "uid": entry.get("id", ""),
            "version": OCSF_VERSION,
        },
        "severity_id": 1 if allowed else 2 if denied else 3,
        "src_endpoint": _told({"ip": who.get("address"), "port": who.get("port")}),
        "status_code": str(status),
        "status_detail": why.get("reason", ""),
        "status_id": 1 if allowed and 0 < status < 400 else 2,
        "time": int(moment.timestamp()) * 1000 + moment.microsecond // 1000,
        "type_uid": class_uid * 100 + activity,
    }
    if activity == _OTHER:
        made["activity_name"] = method or "unreadable"
    if why.get("rule") or why.get("policy_digest"):
        made["policy"] = _told({"name": why.get("rule"), "uid": why.get("policy_digest"), "version": str(why.get("policy_revision", ""))})
    if who.get("subject"):
        made["actor"]["session"] = {"credential_uid": who["subject"]}
    if class_uid == API_ACTIVITY:
        made["api"] = {
            "operation": f"{method} {what.get('path', '')}",
            "request": {"uid": entry.get("id", "")},
            "response": {"code": status, "error": why.get("reason", "")},
            "service": {"name": what.get("cluster") or what.get("host") or "meshguard"},
        }
    return made


def _told(values: dict[str, Any]) -> dict[str, Any]:
    """What of an endpoint or policy is known; the schema asks for at least one of its names."""
    known = {name: value for name, value in values.items() if value}
    return known if known.keys() - {"port", "version"} else {**known, "name": "unknown"}


def opa(entry: Mapping[str, Any], labels: Mapping[str, str]) -> dict[str, Any]:
    """One decision of an OPA decision log (which as a whole is a gzip JSON array). What the record never had stands in `erased`."""
    who, what, why, outcome = _parts(entry)
    made: dict[str, Any] = {
        "bundles": {"policy": {"revision": why.get("policy_digest", "")}},
        "decision_id": entry.get("id", ""),
        "erased": _HIDDEN,
        "input": {
            "host": what.get("host", ""),
            "method": what.get("method", ""),
            "path": what.get("path", ""),
            "principal": who.get("principal"),
            "source": {"address": who.get("address", ""), "port": who.get("port", 0)},
            "subject": who.get("subject"),
        },
        "labels": dict(labels),
        "metrics": {"timer_server_handler_ns": outcome.get("duration_us", 0) * 1000},
        "path": "meshguard/authz/allow",
        "requested_by": f"{who.get('address', '')}:{who.get('port', 0)}",
        "result": {
            "allow": why.get("verdict") == "allow",
            "reason": why.get("reason"),
            "rule": why.get("rule"),
            "verdict": why.get("verdict"),
        },
        "timestamp": entry["time"],
    }
    if entry.get("trace_id"):
        made["trace_id"] = entry["trace_id"]
    return made
