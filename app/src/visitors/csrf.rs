//! Forms of ours only: each has a token that another site can neither read nor make.
//!
//! From "E-Commerce with Django at Scale": the token is one of the holes that the second pass fills. It is a MAC over the session's id, so nothing is
//! stored and any worker can check it. The pitfall is the page that is cached for everybody: it must not have a token, so the first form of
//! a visitor who has nothing yet comes without. It is let in if the browser says that it comes from a page of ours (`Origin`, which no
//! page can forge), and only while there is nothing in the session that could be misused.

use super::cookie::{Keys, SessionId};
use super::session::Session;

/// What a form is signed for.
const PURPOSE: &str = "form";

/// The token of a session's forms.
pub(crate) fn token(keys: &Keys, id: &SessionId) -> String {
    keys.sign(PURPOSE, id.as_str())
}

/// Whether a form comes from a page of ours. `token`: as it was sent; `origin`: the header; `own`: our address.
pub(crate) fn is_ours(
    keys: &Keys,
    id: Option<&SessionId>,
    session: &Session,
    token: Option<&str>,
    origin: Option<&str>,
    own: &str,
) -> bool {
    match (id, token) {
        (Some(id), Some(token)) => keys.signed_by(PURPOSE, id.as_str(), token).is_some(),
        (_, None) => session.is_empty() && is_own(origin, own),
        (None, Some(_)) => false,
    }
}

/// Whether the browser says that a page of ours sent it.
pub(crate) fn is_own(origin: Option<&str>, own: &str) -> bool {
    origin.and_then(host) == Some(own)
}

/// The host, with its port, of an origin.
fn host(origin: &str) -> Option<&str> {
    origin.strip_prefix("http://").or_else(|| origin.strip_prefix("https://"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::catalogue::ToyId;

    #[test]
    fn a_form_needs_its_sessions_own_token() {
        let dir = tempfile::tempdir().unwrap();
        let keys = Keys::of_file(&dir.path().join("keys")).unwrap();
        let (anna, bob) = (SessionId::random().unwrap(), SessionId::random().unwrap());
        let (empty, full) =
            (Session::default(), Session { lines: vec![(ToyId(1), 2)], ..Session::default() });
        let ours = |id, session, token, origin| is_ours(&keys, id, session, token, origin, "shop:80");
        let token = token(&keys, &anna);
        assert!(ours(Some(&anna), &full, Some(&token), None));
        assert!(!ours(Some(&bob), &full, Some(&token), None), "another session's");
        assert!(!ours(Some(&anna), &full, Some(""), Some("http://shop:80")));
        assert!(!ours(None, &empty, Some(&token), Some("http://shop:80")));
        // Without a token: a visitor with nothing to lose, from a page of ours.
        assert!(ours(None, &empty, None, Some("http://shop:80")));
        assert!(ours(Some(&anna), &empty, None, Some("https://shop:80")));
        assert!(!ours(Some(&anna), &full, None, Some("http://shop:80")));
        for origin in [None, Some("null"), Some("http://evil"), Some("http://shop:80.evil"), Some("shop:80")]
        {
            assert!(!ours(None, &empty, None, origin), "{origin:?}");
        }
    }
}
