//! The counters of a network namespace that `nstat` shows.

use std::{collections::BTreeMap, fs};

use crate::{
    error::{Context, Result},
    lab::Netns,
};

/// By `nstat`'s names: `TcpRetransSegs`, `TcpExtTCPTimeouts`, `Ip6InReceives`, ...
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Counters(BTreeMap<String, i64>);

impl Counters {
    /// As they are now.
    ///
    /// # Errors
    ///
    /// The kernel's.
    pub fn read(netns: &Netns) -> Result<Self> {
        let [snmp, netstat, snmp6] = netns.run(|| {
            let read = |name| {
                let file = format!("/proc/thread-self/net/{name}");
                fs::read_to_string(&file).context(&file)
            };
            Ok([read("snmp")?, read("netstat")?, read("snmp6").unwrap_or_default()])
        })?;
        let mut counters = BTreeMap::new();
        for table in [snmp, netstat] {
            counters.extend(pairs_of_lines(&table));
        }
        counters.extend(snmp6.lines().filter_map(|line| {
            let mut words = line.split_whitespace();
            Some((words.next()?.to_owned(), words.next()?.parse().ok()?))
        }));
        Ok(Self(counters))
    }

    /// One counter, 0 if the kernel does not have it.
    #[must_use]
    pub fn get(&self, name: &str) -> i64 {
        self.0.get(name).copied().unwrap_or(0)
    }

    /// What was counted since `before`; what was not counted is left out.
    #[must_use]
    pub fn since(&self, before: &Self) -> Self {
        let grown = self.0.iter().map(|(name, value)| (name.clone(), value - before.get(name)));
        Self(grown.filter(|(_, value)| *value != 0).collect())
    }
}

/// A line of names, then a line of values, both beginning with the table's name.
fn pairs_of_lines(text: &str) -> Vec<(String, i64)> {
    let lines: Vec<&str> = text.lines().collect();
    let mut found = Vec::new();
    for pair in lines.chunks_exact(2) {
        let Some((table, names)) = pair[0].split_once(':') else { continue };
        let Some((_, values)) = pair[1].split_once(':') else { continue };
        let values = values.split_whitespace().map(|value| value.parse().unwrap_or(0));
        found.extend(names.split_whitespace().map(|name| format!("{table}{name}")).zip(values));
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tables_and_differences() {
        let text = "Tcp: RtoMin RetransSegs\nTcp: -1 7\nTcpExt: A B\nTcpExt: 2 3\n";
        let now = Counters(pairs_of_lines(text).into_iter().collect());
        assert_eq!((now.get("TcpRtoMin"), now.get("TcpRetransSegs"), now.get("TcpExtB")), (-1, 7, 3));
        assert_eq!(now.get("TcpExtC"), 0);
        let before = Counters([("TcpRetransSegs".to_owned(), 5), ("TcpExtB".to_owned(), 3)].into());
        let grown = now.since(&before);
        assert_eq!((grown.get("TcpRetransSegs"), grown.get("TcpExtB")), (2, 0));
        assert!(!grown.0.contains_key("TcpExtB"));
    }
}
