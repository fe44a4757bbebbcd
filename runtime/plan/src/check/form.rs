//! The form of single values: lengths, texts and paths.

use crate::limits;
use crate::policy::Refusal;

/// Refuses more than `limit` of something.
pub(super) fn at_most(field: &str, length: usize, limit: usize) -> Result<(), Refusal> {
    if length > limit {
        return Err(Refusal::new(field, format!("has {length}"), format!("use at most {limit}")));
    }
    Ok(())
}

/// A text without NUL of at most `limit` bytes.
pub(super) fn text(field: &str, value: &str, limit: usize) -> Result<(), Refusal> {
    if value.len() > limit {
        return Err(Refusal::new(field, format!("has {} bytes", value.len()), format!("use at most {limit}")));
    }
    if value.contains('\0') {
        return Err(Refusal::new(field, "contains a NUL byte", "leave it out: the kernel ends texts there"));
    }
    Ok(())
}

/// An absolute path without `..`, shorter than PATH_MAX with its final NUL.
pub(super) fn path(field: &str, value: &str) -> Result<(), Refusal> {
    text(field, value, limits::PATH_BYTES.saturating_sub(1))?;
    if !value.starts_with('/') {
        let shown: String = value.chars().take(80).collect();
        return Err(Refusal::new(field, format!("{shown:?} is not absolute"), "begin it with '/'"));
    }
    if value.split('/').any(|component| component == "..") {
        return Err(Refusal::new(field, "contains '..'", "write the path without it"));
    }
    Ok(())
}

/// As [`path`], and not `/` itself in any spelling.
pub(super) fn path_below_root(field: &str, value: &str) -> Result<(), Refusal> {
    path(field, value)?;
    if components(value).next().is_none() {
        return Err(Refusal::new(field, "is the root itself", "name a path below it"));
    }
    Ok(())
}

/// As [`path`], and strictly below the directory `above`.
pub(super) fn below(field: &str, value: &str, above: &str) -> Result<(), Refusal> {
    path(field, value)?;
    if !is_below(value, above) || same_path(value, above) {
        let shown: String = value.chars().take(80).collect();
        return Err(Refusal::new(
            field,
            format!("{shown:?} is not below {above}"),
            format!("name a file below {above}"),
        ));
    }
    Ok(())
}

/// Whether two paths have the same components.
pub(super) fn same_path(one: &str, other: &str) -> bool {
    components(one).eq(components(other))
}

/// Whether `value` is `above` or lies below it, component by component.
pub(super) fn is_below(value: &str, above: &str) -> bool {
    let mut rest = components(value);
    components(above).all(|component| rest.next() == Some(component))
}

fn components(path: &str) -> impl Iterator<Item = &str> {
    path.split('/').filter(|component| !component.is_empty() && *component != ".")
}
