//! Unit tests of `http.rs`.

use super::*;

fn parsed(page: Page, head_only: bool) -> Result<Option<Request>, Refusal> {
    let page = Some(page);
    Ok(Some(Request { page, head_only }))
}

#[test]
fn parser_reads_method_and_path() {
    let read = |line: &str| read(format!("{line} HTTP/1.1\r\nHost: here\r\n\r\n").as_bytes());
    let metrics = Page::Metrics(Exposition::Classic);
    assert_eq!(read("GET /metrics"), parsed(metrics, false));
    assert_eq!(read("HEAD /healthz"), parsed(Page::Health, true));
    assert_eq!(read("GET /readyz?verbose"), parsed(Page::Ready, false));
    assert_eq!(read("GET /status"), parsed(Page::Status, false));
    for (line, head_only) in [("GET /statuses", false), ("GET /", false), ("HEAD /", true)] {
        let page = None;
        assert_eq!(read(line), Ok(Some(Request { page, head_only })), "{line}");
    }
    assert_eq!(read("POST /metrics"), Err(Refusal::Method));
    assert_eq!(read("\u{1}"), Err(Refusal::Malformed));
}

#[test]
fn absolute_form_names_page() {
    for (target, path) in [
        ("http://x:9900/healthz", "/healthz"),
        ("HTTP://[::1]:9900/readyz?verbose", "/readyz"),
        ("https://user@x/status#top", "/status"),
        ("http://x", ""),
        ("http://x?/healthz", ""),
        ("ftp://x/healthz", "ftp://x/healthz"),
        ("/go?to=http://x/healthz", "/go"),
        ("/healthz", "/healthz"),
    ] {
        assert_eq!(path_of(target), path, "{target}");
    }
    let request = b"GET http://x:9900/healthz HTTP/1.1\r\nHost: x:9900\r\n\r\n";
    assert_eq!(read(request), parsed(Page::Health, false));
}

#[test]
fn accept_header_selects_metrics_format() {
    let prometheus = "application/openmetrics-text;version=1.0.0,application/openmetrics-text;\
                          version=0.0.1;q=0.75,text/plain;version=0.0.4;q=0.5,*/*;q=0.1";
    for (accept, liked) in [
        (prometheus, Exposition::OpenMetrics),
        ("Application/OpenMetrics-Text", Exposition::OpenMetrics),
        (
            "text/plain; q=0.3, application/openmetrics-text; q=0.3",
            Exposition::OpenMetrics,
        ),
        (
            "text/plain;version=0.0.4;q=1, */*;q=0.1",
            Exposition::Classic,
        ),
        (
            "text/plain, application/openmetrics-text;q=0.9",
            Exposition::Classic,
        ),
        ("application/openmetrics-text;q=0", Exposition::Classic),
        ("*/*", Exposition::Classic),
        ("\u{1}, ;;q=", Exposition::Classic),
    ] {
        let request = format!("GET /metrics HTTP/1.1\r\naccept: {accept}\r\n\r\n");
        if accept.contains('\u{1}') {
            let read = Exposition::preferred_in([accept.as_bytes()].into_iter());
            assert_eq!(read, liked);
        } else {
            let page = Page::Metrics(liked);
            assert_eq!(read(request.as_bytes()), parsed(page, false), "{accept}");
        }
    }
}

#[test]
fn parser_awaits_rest_and_refuses_excess() {
    let whole = b"GET /status HTTP/1.1\r\nHost: here\r\n\r\n";
    for end in 0..whole.len() {
        assert_eq!(read(&whole[..end]), Ok(None), "{end}");
    }
    let many = format!(
        "GET / HTTP/1.1\r\n{}\r\n",
        "A: b\r\n".repeat(HEADERS_MAX + 1)
    );
    assert_eq!(read(many.as_bytes()), Err(Refusal::TooLong));
}

#[test]
fn response_states_its_length() {
    let whole = Response::text(200, "ok").encode(false);
    let whole = String::from_utf8(whole).unwrap();
    assert!(whole.starts_with("HTTP/1.1 200 OK\r\n"), "{whole}");
    assert!(whole.contains("\r\nContent-Length: 3\r\n"), "{whole}");
    assert!(whole.ends_with("\r\n\r\nok\n"), "{whole}");
    let head = String::from_utf8(Response::text(200, "ok").encode(true)).unwrap();
    assert_eq!(format!("{head}ok\n"), whole);
    let refused = Refusal::Method.response();
    let bytes = String::from_utf8(refused.encode(false)).unwrap();
    assert!(bytes.contains("\r\nAllow: GET, HEAD\r\n"), "{bytes}");
    for refusal in [
        Refusal::Malformed,
        Refusal::Method,
        Refusal::TooSlow,
        Refusal::TooLong,
    ] {
        assert!(Response::STATUSES.contains(&refusal.response().status));
    }
    assert!(Response::STATUSES.contains(&Response::not_found().status));
}
