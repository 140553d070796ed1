//! Which peer a caller means.

use tonic::Status;

use super::PeerKeys;

/// Most names that a refusal lists.
const LISTED: usize = 10;

/// The name of a configured peer, or nothing when all are meant.
#[allow(clippy::result_large_err, reason = "callers answer with it")]
pub(crate) fn known(peers: &[PeerKeys], asked: &str) -> Result<Option<String>, Status> {
    if asked.is_empty() {
        return Ok(None);
    }
    find(peers, asked).map(|peer| Some(peer.name.to_string()))
}

/// Checks that `asked` is one of the key chains.
#[allow(clippy::result_large_err, reason = "callers answer with it")]
pub(crate) fn known_chain(chains: &[&str], asked: &str) -> Result<(), Status> {
    match chains.contains(&asked) {
        true => Ok(()),
        false => Err(Status::not_found(format!(
            "there is no key chain `{asked}`{}",
            hint(chains, asked)
        ))),
    }
}

/// The name of a peer whose keys are agreed automatically.
#[allow(clippy::result_large_err, reason = "callers answer with it")]
pub(crate) fn automatic(peers: &[PeerKeys], asked: &str) -> Result<String, Status> {
    if asked.is_empty() {
        return Err(Status::invalid_argument("no peer is named"));
    }
    let peer = find(peers, asked)?;
    if peer.automatic {
        Ok(peer.name.to_string())
    } else {
        Err(Status::failed_precondition(format!(
            "peer `{asked}` has a key chain; its keys change by their lifetimes"
        )))
    }
}

#[allow(clippy::result_large_err, reason = "callers answer with it")]
fn find<'p>(peers: &'p [PeerKeys], asked: &str) -> Result<&'p PeerKeys, Status> {
    peers
        .iter()
        .find(|peer| &*peer.name == asked)
        .ok_or_else(|| {
            let names: Vec<_> = peers.iter().map(|peer| &*peer.name).collect();
            Status::not_found(format!("there is no peer `{asked}`{}", hint(&names, asked)))
        })
}

/// The nearest name, or all of them where they are few.
fn hint(names: &[&str], asked: &str) -> String {
    let asked = asked.to_lowercase();
    let near = names
        .iter()
        .map(|name| {
            (
                strsim::damerau_levenshtein(&asked, &name.to_lowercase()),
                name,
            )
        })
        .filter(|&(distance, name)| distance <= 3 && 2 * distance <= name.len())
        .min_by_key(|&(distance, _)| distance);
    if let Some((_, name)) = near {
        return format!("; is `{name}` meant?");
    }
    match names.len() {
        0 => "; none is configured".to_owned(),
        1..=LISTED => {
            let all: Vec<String> = names.iter().map(|name| format!("`{name}`")).collect();
            format!("; configured are {}", all.join(", "))
        }
        count => format!(" among the {count} that are configured"),
    }
}

#[cfg(test)]
mod tests {
    use tonic::Code;

    use super::*;

    fn peers(names: &[&str]) -> Vec<PeerKeys> {
        let peer = |&name: &&str| PeerKeys {
            name: name.into(),
            automatic: name.starts_with("as"),
        };
        names.iter().map(peer).collect()
    }

    fn refusal(names: &[&str], asked: &str) -> (Code, String) {
        let status = automatic(&peers(names), asked).unwrap_err();
        (status.code(), status.message().to_owned())
    }

    #[test]
    fn names_are_found() {
        let peers = peers(&["as1", "router"]);
        assert_eq!(known(&peers, "").unwrap(), None);
        assert_eq!(known(&peers, "router").unwrap(), Some("router".into()));
        assert_eq!(automatic(&peers, "as1").unwrap(), "as1");
    }

    #[test]
    fn unknown_names_get_the_nearest_one_or_all() {
        let not_found = |text: &str| (Code::NotFound, text.to_owned());
        assert_eq!(
            refusal(&["as64502", "ix"], "AS64520"),
            not_found("there is no peer `AS64520`; is `as64502` meant?")
        );
        assert_eq!(
            refusal(&["as64502", "ix"], "transit"),
            not_found("there is no peer `transit`; configured are `as64502`, `ix`")
        );
        assert_eq!(
            refusal(&[], "x"),
            not_found("there is no peer `x`; none is configured")
        );
        let many = ["peer"; LISTED + 1];
        assert_eq!(
            refusal(&many, "transit"),
            not_found("there is no peer `transit` among the 11 that are configured")
        );
    }

    #[test]
    fn unknown_key_chains_get_a_hint() {
        assert!(known_chain(&["transit", "ix"], "ix").is_ok());
        let status = known_chain(&["transit"], "transti").unwrap_err();
        assert_eq!(
            (status.code(), status.message()),
            (
                Code::NotFound,
                "there is no key chain `transti`; is `transit` meant?"
            )
        );
    }

    #[test]
    fn key_chains_have_no_rollover() {
        let text = "peer `ix` has a key chain; its keys change by their lifetimes";
        let refused = refusal(&["as64502", "ix"], "ix");
        assert_eq!(refused, (Code::FailedPrecondition, text.into()));
        assert_eq!(refusal(&["as64502"], "").0, Code::InvalidArgument);
    }
}
