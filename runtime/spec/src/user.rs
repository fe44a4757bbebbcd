//! `user[:group]` as images and command lines have it.
//!
//! A part that is all digits is an id or an error, never a name: an id that overflows must not become somebody's name, and one that would
//! wrap must not become root.

use byre_plan::{Principal, User};

/// A text that is no user.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("user {0:?} is not of the form user or user:group: use names of the image, or ids below 4294967295")]
pub struct MalformedUser(pub String);

/// Parses `user`, `user:group` or nothing (root). `:group` without a user is refused.
///
/// # Errors
/// A part is empty, negative, or no id.
pub fn parse_user(text: &str) -> Result<User, MalformedUser> {
    let malformed = || MalformedUser(text.chars().take(80).collect());
    if text.is_empty() {
        return Ok(User::default());
    }
    let (user, group) = match text.split_once(':') {
        Some((user, group)) => (user, Some(group)),
        None => (text, None),
    };
    Ok(User {
        user: principal(user).ok_or_else(malformed)?,
        group: group.map(|group| principal(group).ok_or_else(malformed)).transpose()?,
        ..User::default()
    })
}

fn principal(part: &str) -> Option<Principal> {
    if part.is_empty() || part.starts_with(['-', '+']) || part.contains(':') || part.chars().any(char::is_control) {
        return None;
    }
    if part.bytes().all(|byte| byte.is_ascii_digit()) {
        // The last id means "unchanged" to the kernel.
        return part.parse().ok().filter(|id| *id != u32::MAX).map(Principal::Id);
    }
    Some(Principal::Name(part.to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_and_names_are_told_apart_and_nothing_wraps() {
        assert_eq!(parse_user("").unwrap(), User::default());
        assert_eq!(parse_user("1000").unwrap().user, Principal::Id(1000));
        let both = parse_user("web:33").unwrap();
        assert_eq!((both.user, both.group), (Principal::Name("web".to_owned()), Some(Principal::Id(33))));
        assert_eq!(parse_user("1a").unwrap().user, Principal::Name("1a".to_owned()));
        for bad in
            [":5", "5:", ":", "-1", "+1", "4294967295", "4294967296", "99999999999999999999", "0:-1", "a:b:c", "a\nb"]
        {
            assert!(parse_user(bad).is_err(), "{bad}");
        }
    }
}
