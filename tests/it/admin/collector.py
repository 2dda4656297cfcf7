"""An OpenTelemetry collector: prints its port, then a line of JSON for each batch of spans."""

import json
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import (
    ExportTraceServiceRequest,
    ExportTraceServiceResponse,
)
from opentelemetry.proto.trace.v1.trace_pb2 import Span


def values(attributes):
    return {a.key: getattr(a.value, a.value.WhichOneof("value")) for a in attributes}


def span_json(span):
    return {
        "name": span.name,
        "kind": Span.SpanKind.Name(span.kind),
        "trace": span.trace_id.hex(),
        "id": span.span_id.hex(),
        "parent": span.parent_span_id.hex(),
        "state": span.trace_state,
        "links": [[link.trace_id.hex(), link.span_id.hex()] for link in span.links],
        "attributes": values(span.attributes),
        "events": [[event.name, values(event.attributes)] for event in span.events],
        "is_error": span.status.code == 2,
        "seconds": (span.end_time_unix_nano - span.start_time_unix_nano) / 1e9,
        "is_ordered": 0 < span.start_time_unix_nano <= span.end_time_unix_nano,
    }


class Collector(BaseHTTPRequestHandler):
    def do_POST(self):
        body = self.rfile.read(int(self.headers["content-length"]))
        batch = ExportTraceServiceRequest.FromString(body)
        resources = batch.resource_spans
        line = {
            "path": self.path,
            "type": self.headers["content-type"],
            "token": self.headers["x-token"],
            "resource": values(resources[0].resource.attributes),
            "spans": [span_json(s) for r in resources for scope in r.scope_spans for s in scope.spans],
            "raw": body.decode("latin-1"),
        }
        print(json.dumps(line), flush=True)
        self.send_response(200)
        self.send_header("content-type", "application/x-protobuf")
        self.end_headers()
        self.wfile.write(ExportTraceServiceResponse().SerializeToString())

    def log_message(self, *_):
        pass


server = ThreadingHTTPServer(("127.0.0.1", 0), Collector)
print(server.server_port, flush=True)
server.serve_forever()
