//! The supported part of HTTP: the head of a request, and the bytes of a response.
//!
//! Pure. Invariants: only the method, the path and `Accept` matter; every response states its
//! length and closes its connection. It must not know the contents of pages.

use httparse::{EMPTY_HEADER, Error, Status};

/// Maximum number of header lines in a request.
const HEADERS_MAX: usize = 64;

/// A request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Request {
    /// The page; `None` if it does not exist.
    pub(super) page: Option<Page>,
    /// Whether to send only the head of the response.
    pub(super) head_only: bool,
}

/// The pages.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Page {
    /// `/metrics`: counters and gauges as text.
    Metrics(Exposition),
    /// `/healthz`: whether the supervisor responds.
    Health,
    /// `/readyz`: whether every queue is served.
    Ready,
    /// `/status`: the status as JSON.
    Status,
}

/// The format of the text for Prometheus.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Exposition {
    /// The format that Prometheus requests by name.
    OpenMetrics,
    /// The older format, which every reader supports: the default.
    Classic,
}

impl Exposition {
    const OPEN_METRICS: &str = "application/openmetrics-text";
    const CLASSIC: &str = "text/plain";

    /// Returns the format preferred by the values of `Accept`.
    fn preferred_in<'a>(accept: impl Iterator<Item = &'a [u8]>) -> Self {
        let (mut open_metrics, mut classic) = (0.0_f32, 0.0_f32);
        for value in accept.filter_map(|value| std::str::from_utf8(value).ok()) {
            for range in value.split(',') {
                let mut parts = range.split(';').map(str::trim);
                let name = parts.next().unwrap_or_default();
                let weight = parts.find_map(|part| part.strip_prefix("q="));
                let weight = weight.map_or(1.0, |weight| weight.parse().unwrap_or(0.0));
                if name.eq_ignore_ascii_case(Self::OPEN_METRICS) {
                    open_metrics = open_metrics.max(weight);
                } else if name.eq_ignore_ascii_case(Self::CLASSIC) {
                    classic = classic.max(weight);
                }
            }
        }
        if open_metrics > 0.0 && open_metrics >= classic {
            Self::OpenMetrics
        } else {
            Self::Classic
        }
    }

    /// Returns the content type.
    pub(super) const fn content_type(self) -> &'static str {
        match self {
            Self::OpenMetrics => "application/openmetrics-text; version=1.0.0; charset=utf-8",
            Self::Classic => "text/plain; version=0.0.4; charset=utf-8",
        }
    }
}

/// The reason why a client or its request is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Refusal {
    /// The client is not in `admin_allow`.
    Address,
    /// It is not HTTP.
    Malformed,
    /// Its method is neither `GET` nor `HEAD`.
    Method,
    /// It did not arrive in time, or had to yield to waiting clients.
    TooSlow,
    /// Its head is too long.
    TooLong,
}

/// A response.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Response {
    pub(super) status: u16,
    pub(super) content_type: &'static str,
    pub(super) body: String,
}

/// Parses the head of a request; `None` if it is incomplete.
pub(super) fn read(bytes: &[u8]) -> Result<Option<Request>, Refusal> {
    let mut headers = [EMPTY_HEADER; HEADERS_MAX];
    let mut request = httparse::Request::new(&mut headers);
    match request.parse(bytes) {
        Ok(Status::Complete(_)) => {}
        Ok(Status::Partial) => return Ok(None),
        Err(Error::TooManyHeaders) => return Err(Refusal::TooLong),
        Err(_) => return Err(Refusal::Malformed),
    }
    let head_only = match request.method {
        Some("GET") => false,
        Some("HEAD") => true,
        _ => return Err(Refusal::Method),
    };
    let page = match path_of(request.path.unwrap_or_default()) {
        "/metrics" => {
            let accept = request.headers.iter();
            let accept = accept.filter(|header| header.name.eq_ignore_ascii_case("accept"));
            let liked = Exposition::preferred_in(accept.map(|header| header.value));
            Some(Page::Metrics(liked))
        }
        "/healthz" => Some(Page::Health),
        "/readyz" => Some(Page::Ready),
        "/status" => Some(Page::Status),
        _ => None,
    };
    Ok(Some(Request { page, head_only }))
}

/// Returns the path of a request's target, without its query. A client that uses a proxy sends the
/// absolute form, `http://HOST/PATH`, which every server must accept (RFC 9112, 3.2.2); the host is
/// ignored.
fn path_of(target: &str) -> &str {
    let scheme = target.find("://").map(|end| &target[..end]);
    let behind_scheme = scheme
        .filter(|scheme| {
            ["http", "https"]
                .iter()
                .any(|s| scheme.eq_ignore_ascii_case(s))
        })
        .map(|scheme| &target[scheme.len() + "://".len()..]);
    let path = behind_scheme.map_or(target, |rest| {
        let end = rest.find(['/', '?', '#']).unwrap_or(rest.len());
        &rest[end..]
    });
    path.split(['?', '#']).next().unwrap_or_default()
}

impl Refusal {
    /// Returns the response to a refused request.
    pub(super) fn response(self) -> Response {
        let (status, why) = match self {
            Self::Address => (403, "your address is not in admin_allow"),
            Self::Malformed => (400, "not an HTTP request"),
            Self::Method => (405, "only GET and HEAD are supported"),
            Self::TooSlow => (408, "the request timed out"),
            Self::TooLong => (431, "the request head is too long"),
        };
        Response::text(status, why)
    }
}

impl Response {
    /// The status codes of responses.
    pub(super) const STATUSES: [u16; 8] = [200, 400, 403, 404, 405, 408, 431, 503];

    /// Returns the response for a nonexistent page.
    pub(super) fn not_found() -> Self {
        Self::text(
            404,
            "available paths: /metrics, /healthz, /readyz and /status",
        )
    }

    /// Returns a response of one line of text.
    pub(super) fn text(status: u16, line: &str) -> Self {
        Self {
            status,
            content_type: "text/plain; charset=utf-8",
            body: format!("{line}\n"),
        }
    }

    /// Returns the encoded response.
    pub(super) fn encode(&self, head_only: bool) -> Vec<u8> {
        let reason = match self.status {
            200 => "OK",
            400 => "Bad Request",
            403 => "Forbidden",
            404 => "Not Found",
            405 => "Method Not Allowed",
            408 => "Request Timeout",
            431 => "Request Header Fields Too Large",
            _ => "Service Unavailable",
        };
        let allow = if self.status == 405 {
            "Allow: GET, HEAD\r\n"
        } else {
            ""
        };
        let mut text = format!(
            "HTTP/1.1 {} {reason}\r\nContent-Type: {}\r\nContent-Length: {}\r\n{allow}\
             Cache-Control: no-store\r\nConnection: close\r\n\r\n",
            self.status,
            self.content_type,
            self.body.len(),
        );
        if !head_only {
            text.push_str(&self.body);
        }
        text.into_bytes()
    }
}

#[cfg(test)]
mod tests;
