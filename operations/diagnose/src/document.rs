//! The list of verdicts for people, made from the table of rules.

use crate::rules::RULES;
use crate::verdict::Gravity;

const OPENING: &str = "\
# Why a boot failed: the verdicts

`nyx why NAME` says why a machine did not come up, or what is wrong with one that did: it reads what the
consoles said, how the machine ended, what its devices saw of the guest's drivers, and what the host knows, and
compares that with the rules below. Each answer names its evidence (console and line), and what to do.

Where the evidence admits no other reading a verdict is *certain*; *likely* and *possible* say what they are.
Several verdicts may hold at once; a rule that merely says the same less precisely is silent. `-o json` gives
the verdicts with the identifiers below, which do not change.

When a machine ends otherwise than in order, a bundle is kept in the state folder (`$NYX_STATE_DIR`, else
`/var/lib/nyx` for root, else `$XDG_STATE_HOME/nyx` or `~/.local/state/nyx`), in `NAME/bundles/`: the verdicts,
the consoles' first and last output, the times of the boot's stages, plan, description, inspect tree and journal.
The last five of each machine stay. Consoles may show secrets: only their owner can read them.

This page is made from the table of rules in `operations/diagnose/src/rules.rs`, and a test keeps the two equal.
";

/// The page `docs/diagnosis.md`.
pub fn document() -> String {
    let mut page = OPENING.to_owned();
    let parts = [
        (Gravity::Fatal, "What stops a boot"),
        (Gravity::Degraded, "What leaves something broken or slow"),
        (Gravity::Benign, "What only looks like a fault"),
    ];
    for (gravity, title) in parts {
        page.push_str(&format!("\n## {title}\n"));
        for rule in RULES.iter().filter(|rule| rule.gravity == gravity) {
            page.push_str(&format!(
                "\n### `{}`: {}\n\n{}\n\n**Mend.** {}\n",
                rule.id, rule.title, rule.meaning, rule.mend
            ));
        }
    }
    page
}

#[cfg(test)]
mod tests {
    #[test]
    fn the_page_is_what_the_table_says() {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../../docs/diagnosis.md");
        let page = super::document();
        if std::env::var_os("NYX_BLESS").is_some() {
            std::fs::write(path, &page).unwrap();
        }
        let found = std::fs::read_to_string(path).unwrap_or_default();
        assert!(
            found == page,
            "docs/diagnosis.md differs from the rules; NYX_BLESS=1 cargo test -p nyx-diagnose writes it anew"
        );
    }
}
