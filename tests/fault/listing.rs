//! What `nft -s list table` prints, without what differs between two loads of the same rules: order, time, counters, identity.

use std::collections::BTreeMap;

/// The blocks of a table: the first line of each, and its other lines.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Listing(BTreeMap<String, Vec<String>>);

impl Listing {
    /// Reads the text of one table.
    pub fn of(text: &str) -> Listing {
        let mut blocks = BTreeMap::new();
        let mut block: Option<(String, Vec<String>)> = None;
        let mut rest = String::new();
        for line in text.lines().skip(1).map(str::trim) {
            // Elements go on over lines until their brace closes.
            rest.push_str(line);
            if rest.starts_with("elements = {") && !rest.ends_with('}') {
                rest.push(' ');
                continue;
            }
            let line = std::mem::take(&mut rest);
            match &mut block {
                None if line.ends_with('{') => block = Some((line, Vec::new())),
                Some(_) if line == "}" => drop(block.take().map(|(head, lines)| blocks.insert(head, lines))),
                Some((_, lines)) => lines.push(normal(&line)),
                None => {}
            }
        }
        blocks.retain(|head, _| !head.starts_with("chain identity "));
        for (head, lines) in &mut blocks {
            // What rules have added is the world's doing.
            if head.starts_with("set ") && lines.iter().any(|line| line.starts_with("flags") && line.contains("dynamic")) {
                lines.retain(|line| !line.starts_with("elements"));
            }
        }
        Listing(blocks)
    }

    /// Whether some line says this.
    #[allow(dead_code, reason = "asked by one of the two tests that share this file")]
    pub fn says(&self, words: &str) -> bool {
        self.0.iter().any(|(head, lines)| head.contains(words) || lines.iter().any(|line| line.contains(words)))
    }
}

impl std::fmt::Display for Listing {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        for (head, lines) in &self.0 {
            writeln!(f, "{head}")?;
            lines.iter().try_for_each(|line| writeln!(f, "    {line}"))?;
        }
        Ok(())
    }
}

/// A line without times; elements in order.
fn normal(line: &str) -> String {
    let Some(elements) = line.strip_prefix("elements = {").and_then(|rest| rest.strip_suffix('}')) else { return line.to_string() };
    let mut elements: Vec<String> = elements.split(',').map(timeless).collect();
    elements.sort();
    format!("elements = {{ {} }}", elements.join(", "))
}

fn timeless(element: &str) -> String {
    let mut words = element.split_whitespace();
    let mut kept = Vec::new();
    while let Some(word) = words.next() {
        match word {
            "timeout" | "expires" => drop(words.next()),
            // Stateless output keeps the word and loses the numbers, but not in every version.
            "counter" => kept.push(word),
            "packets" | "bytes" => drop(words.next()),
            _ => kept.push(word),
        }
    }
    kept.join(" ")
}

#[test]
fn a_listing_knows_no_order_and_no_time() {
    let one = "table inet t {\n\tset s {\n\t\tflags timeout\n\t\telements = { 192.0.2.1 counter timeout 1d expires 3h comment \"a\",\n\t\t\t     192.0.2.2 counter }\n\t}\n\tchain c {\n\t\taccept\n\t}\n}\n";
    let two = "table inet t {\n\tchain c {\n\t\taccept\n\t}\n\tset s {\n\t\tflags timeout\n\t\telements = { 192.0.2.2 counter packets 1 bytes 2,\n\t\t\t     192.0.2.1 counter timeout 2d comment \"a\" }\n\t}\n}\n";
    assert_eq!(Listing::of(one), Listing::of(two));
    assert_ne!(Listing::of(one), Listing::of(&one.replace("accept", "drop")));
    assert_ne!(Listing::of(one), Listing::of(&one.replace("192.0.2.2", "192.0.2.3")));
}
