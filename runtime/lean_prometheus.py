"""prometheus_client without its HTTP servers and its client of a push gateway: /metrics is served by ours.

Agents import it here first; who imports it later gets the same. Its functions that serve or push metrics do not work
then, except in an executor: custom functions run there, and it imports the whole library before this.
"""

from runtime.absent import empty_classes, hollow

UNUSED = {
    "http.server": empty_classes("BaseHTTPRequestHandler"),
    "wsgiref.simple_server": empty_classes("WSGIRequestHandler", "WSGIServer", "make_server"),
    "socketserver": empty_classes("ThreadingMixIn"),
    "urllib.error": empty_classes("HTTPError"),
    "urllib.request": empty_classes(
        "BaseHandler", "HTTPHandler", "HTTPRedirectHandler", "HTTPSHandler", "Request", "build_opener"
    ),
}

try:
    with hollow(UNUSED):
        import prometheus_client
        import prometheus_client.core
except (ImportError, AttributeError):  # a release that needs more of them: it is imported as ever
    import prometheus_client
    import prometheus_client.core

Collector = prometheus_client.registry.Collector
CollectorRegistry = prometheus_client.CollectorRegistry
Counter = prometheus_client.Counter
CounterMetricFamily = prometheus_client.core.CounterMetricFamily
Gauge = prometheus_client.Gauge
GaugeMetricFamily = prometheus_client.core.GaugeMetricFamily
Histogram = prometheus_client.Histogram
InfoMetricFamily = prometheus_client.core.InfoMetricFamily
Metric = prometheus_client.core.Metric
choose_encoder = prometheus_client.exposition.choose_encoder
