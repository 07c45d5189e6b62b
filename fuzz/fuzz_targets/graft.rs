//! A JSON document with some parts replaced: values that mutated bytes rarely become.

use arbitrary::Arbitrary;
use serde_json::Value;

/// One replacement.
#[derive(Arbitrary, Debug)]
pub struct Edit {
    /// Index of the part, counted from the root, modulo the number of parts.
    at: u16,
    with: Graft,
}

/// The replacement.
#[derive(Arbitrary, Debug)]
enum Graft {
    Null,
    Bool(bool),
    Small(u8),
    Number(u64),
    Negative(i64),
    Real(f64),
    Text(String),
    /// Another part of the same document.
    Part(u16),
    Nothing,
    List(u8),
}

/// Number of list elements that one part expands to.
const REPEATED_MAX: usize = 40;

/// Returns `document` with `edits` applied.
pub fn graft(mut document: Value, edits: &[Edit]) -> Value {
    for Edit { at, with } in edits {
        let parts = count(&document);
        let copy = |index: u16| {
            let mut left = usize::from(index) % parts;
            part(&mut document.clone(), &mut left).map(|it| it.take())
        };
        let new = match with {
            Graft::Null | Graft::Nothing => Value::Null,
            Graft::Bool(it) => (*it).into(),
            Graft::Small(it) => (*it).into(),
            Graft::Number(it) => (*it).into(),
            Graft::Negative(it) => (*it).into(),
            Graft::Real(it) => (*it).into(),
            Graft::Text(it) => it.as_str().into(),
            Graft::Part(from) => copy(*from).unwrap_or(Value::Null),
            Graft::List(times) => {
                let one = copy(*at).unwrap_or(Value::Null);
                vec![one; usize::from(*times) % REPEATED_MAX].into()
            }
        };
        let mut left = usize::from(*at) % parts;
        if let Some(part) = part(&mut document, &mut left) {
            *part = new;
        }
    }
    document
}

fn count(value: &Value) -> usize {
    1 + match value {
        Value::Array(items) => items.iter().map(count).sum(),
        Value::Object(fields) => fields.values().map(count).sum(),
        _ => 0,
    }
}

fn part<'a>(value: &'a mut Value, left: &mut usize) -> Option<&'a mut Value> {
    if *left == 0 {
        return Some(value);
    }
    *left -= 1;
    match value {
        Value::Array(items) => items.iter_mut().find_map(|item| part(item, left)),
        Value::Object(fields) => fields.values_mut().find_map(|field| part(field, left)),
        _ => None,
    }
}
