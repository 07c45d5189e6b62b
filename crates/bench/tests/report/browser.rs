//! Opens the pages in a browser without a window, as a phone, a tablet and a desktop show them, light
//! and dark, and checks that everything can be read: `browser.js` has the checks.
//!
//! `cargo test -p uppercased-bench --test report -- --ignored` needs `chromium`. With `PAGES=DIR`,
//! the pages, and a picture of each in every form, are written there.

use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};

use uppercased_bench::outcome::Outcome;
use uppercased_bench::report;

use super::outcomes;

const BROWSER: &str = "chromium";

/// Widths of a phone, a tablet and a desktop.
const WIDTHS: [u32; 3] = [360, 768, 1280];

/// The colour schemes, with the browser's own numbers for them.
const SCHEMES: [(&str, u8); 2] = [("dark", 0), ("light", 1)];

/// Height of a picture.
const HEIGHT: u32 = 3400;

/// Minimum width of the browser's window.
const WINDOW_MIN: u32 = 500;

fn pages() -> Vec<(&'static str, String)> {
    let outcomes: [(_, Outcome); 7] = [
        ("clean", outcomes::clean()),
        ("restarted", outcomes::restarted()),
        ("failed", outcomes::failed()),
        ("stream", outcomes::stream()),
        ("tiny", outcomes::tiny()),
        ("huge", outcomes::huge()),
        ("capacity", outcomes::capacity()),
    ];
    let pages = outcomes.iter();
    pages
        .map(|(name, outcome)| (*name, report::html(outcome)))
        .chain([("comparison", super::comparison_page())])
        .collect()
}

/// Returns a frame that shows the page at this width.
fn frame(name: &str, page: &str, width: u32) -> String {
    let quoted = page.replace('&', "&amp;").replace('"', "&quot;");
    format!(
        "<iframe title=\"{name} {width}\" width=\"{width}\" height=\"{HEIGHT}\" \
         style=\"border: 0; display: block\" srcdoc=\"{quoted}\"></iframe>\n"
    )
}

/// Opens a document of frames and returns what the browser prints.
fn open(frames: &str, scheme: u8, arguments: &[&str]) -> String {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("frames.html");
    let document = format!(
        "<!DOCTYPE html>\n<meta charset=\"utf-8\">\n<body style=\"margin: 0\">\n{frames}</body>\n"
    );
    fs::write(&file, document).unwrap();
    let mut command = Command::new(BROWSER);
    command
        .args(["--headless", "--disable-gpu", "--hide-scrollbars"])
        .arg(format!("--user-data-dir={}", folder.path().display()))
        .arg(format!("--blink-settings=preferredColorScheme={scheme}"))
        .args(arguments)
        .arg(&file)
        .stderr(Stdio::null());
    if rustix::process::geteuid().is_root() {
        // Its sandbox refuses root.
        command.arg("--no-sandbox");
    }
    let output = command.output().unwrap();
    assert!(output.status.success(), "{output:?}");
    String::from_utf8(output.stdout).unwrap()
}

/// Returns the problems that `browser.js` finds in the frames.
fn problems(frames: &str, scheme: u8) -> Vec<String> {
    let script = format!("<script>{}</script>\n", include_str!("browser.js"));
    let printed = open(&(script + frames), scheme, &["--dump-dom"]);
    let (_, found) = printed.split_once("<pre>").expect("the script has run");
    let (found, _) = found.split_once("</pre>").unwrap();
    let found = found.replace("&lt;", "<").replace("&gt;", ">");
    let lines = found.lines().filter(|line| !line.is_empty());
    lines.map(str::to_owned).collect()
}

#[test]
#[ignore = "needs chromium"]
fn pages_are_readable_in_every_form() {
    for (scheme_name, scheme) in SCHEMES {
        let mut frames = String::new();
        for (name, page) in pages() {
            for width in WIDTHS {
                let frame = frame(name, &page, width);
                if let Some(folder) = std::env::var_os("PAGES") {
                    let file = format!("{name}-{width}-{scheme_name}.png");
                    let file = Path::new(&folder).join(file);
                    let size = format!("--window-size={},{HEIGHT}", width.max(WINDOW_MIN));
                    let picture = format!("--screenshot={}", file.display());
                    open(&frame, scheme, &[&size, &picture]);
                }
                frames.push_str(&frame);
            }
        }
        let found = problems(&frames, scheme);
        assert!(found.is_empty(), "{scheme_name}:\n{}", found.join("\n"));
    }
}

/// Otherwise the other test could not fail.
#[test]
#[ignore = "needs chromium"]
fn browser_reports_unreadable_page() {
    let page = "<body style=\"background: #fff; margin: 0\">\
        <p style=\"font-size: 11px\">small</p><p style=\"color: #aaa\">pale</p>\
        <p style=\"width: 400px\">wide</p><table><tr><td>fixed</td></tr></table>\
        <svg role=\"img\" viewBox=\"0 0 720 100\" width=\"360\"><title>chart</title>\
        <text class=\"y\" x=\"10\" y=\"20\" font-size=\"20\">scaled</text>\
        <text x=\"30\" y=\"20\" font-size=\"40\">over</text>\
        <path class=\"line first\" stroke=\"#777\"/><path class=\"line second\" stroke=\"#888\"/></svg>";
    let found = problems(&frame("bad", page, 360), 1).join("\n");
    for expected in [
        "bad 360: <p> \"small\" has text of 11 px",
        "<p> \"pale\" has contrast 2.3",
        "the page is 400 px wide",
        "<p> \"wide\" is cut off",
        "<table> \"fixed\" cannot be scrolled by keys",
        "<text> \"scaled\" has text of 10 px",
        "<text> \"scaled\" overlaps <text> \"over\"",
        "chart: 0 names on the x-axis",
        "line 0 has contrast 1.26 to the next line",
        "line 0 differs from the next in colour only",
    ] {
        assert!(found.contains(expected), "{expected} is not in:\n{found}");
    }
}
