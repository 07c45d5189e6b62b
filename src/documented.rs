//! Tables in `docs/` that are made from the program: compared in tests, or rewritten.

/// Compares `table` with what stands on `page` of `docs/` between the marks of that `name`. With
/// `UPDATE_DOCS=1` in the environment it is written there instead.
#[track_caller]
pub(crate) fn agrees(page: &str, name: &str, table: &str) {
    let (begin, end) = (
        format!("<!-- {name}: begin -->\n"),
        format!("<!-- {name}: end -->"),
    );
    let path = format!("{}/docs/{page}", env!("CARGO_MANIFEST_DIR"));
    let document = std::fs::read_to_string(&path).unwrap();
    let (before, rest) = document.split_once(&begin).unwrap();
    let (written, after) = rest.split_once(&end).unwrap();
    if std::env::var_os("UPDATE_DOCS").is_some() {
        let document = format!("{before}{begin}{table}{end}{after}");
        std::fs::write(path, document).unwrap();
        return;
    }
    assert_eq!(
        written, table,
        "run UPDATE_DOCS=1 cargo test --lib the_documentation_agrees"
    );
}
