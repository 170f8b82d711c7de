//! Where a run's minutes went, and whether each part kept to its share of them.

use std::{
    fmt::Write as _,
    fs,
    time::{Duration, Instant},
};

/// What minutes are given out to: the table of docs/testing.md.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Part {
    /// Lints, tools, programs, unit tests and kernels.
    Build,
    /// The integration tests on the machine's own kernel that measure.
    Host,
    /// Those that wait, beside the guests.
    Beside,
    /// Random faults on it.
    Soak,
    /// The integration tests on the one guest that has it all.
    Guest,
    /// Those on the other kernels.
    Others,
}

impl Part {
    const ALL: [Self; 6] = [Self::Build, Self::Host, Self::Guest, Self::Others, Self::Beside, Self::Soak];

    fn name(self) -> &'static str {
        match self {
            Self::Build => "build and lint",
            Self::Host => "host",
            Self::Beside => "host, beside guests",
            Self::Soak => "soak",
            Self::Guest => "guest",
            Self::Others => "other kernels",
        }
    }

    /// How many minutes it may take on a slow machine.
    fn minutes(self) -> u64 {
        match self {
            Self::Build => 6,
            Self::Host => 5,
            Self::Beside => 4,
            Self::Soak => 2,
            Self::Guest => 7,
            Self::Others => 6,
        }
    }
}

/// One stage.
#[derive(Clone, Debug)]
struct Stage {
    name: String,
    part: Part,
    took: Duration,
    /// The load average over a minute at its end.
    load: String,
}

/// The stages so far.
#[derive(Debug)]
pub(crate) struct Stages {
    began: Instant,
    stages: Vec<Stage>,
}

impl Stages {
    /// None yet.
    pub(crate) fn begin() -> Self {
        Self { began: Instant::now(), stages: Vec::new() }
    }

    /// Does something and notes how long it took.
    pub(crate) fn time<T>(&mut self, name: &str, part: Part, action: impl FnOnce() -> T) -> T {
        let began = Instant::now();
        let done = action();
        self.add(name, part, began.elapsed());
        done
    }

    /// Notes how long something took that others ran beside.
    pub(crate) fn add(&mut self, name: &str, part: Part, took: Duration) {
        self.stages.push(Stage { name: name.into(), part, took, load: load() });
    }

    /// The closing table. Only a run of everything is held to the shares.
    pub(crate) fn table(&self, shares: bool) -> String {
        let mut table = format!("{:<30} {:>8}  LOAD\n", "STAGE", "SECONDS");
        for Stage { name, took, load, .. } in &self.stages {
            line(&mut table, format_args!("{name:<30} {:>8.1}  {load}", took.as_secs_f64()));
        }
        line(&mut table, format_args!("{:<30} {:>8.1}", "all", self.began.elapsed().as_secs_f64()));
        if shares {
            line(&mut table, format_args!("{:<30} {:>8}  SHARE", "PART", "MINUTES"));
            for part in Part::ALL {
                let took: Duration =
                    self.stages.iter().filter(|stage| stage.part == part).map(|stage| stage.took).sum();
                let (minutes, share) = (took.as_secs_f64() / 60.0, part.minutes());
                let over = if minutes > share as f64 { "  OVER ITS SHARE" } else { "" };
                line(&mut table, format_args!("{:<30} {minutes:>8.1}  {share}{over}", part.name()));
            }
        }
        table
    }
}

fn line(table: &mut String, words: std::fmt::Arguments<'_>) {
    // Writing to a String cannot fail.
    let _ = writeln!(table, "{words}");
}

/// The load averages, as the kernel has them.
fn load() -> String {
    let load = fs::read_to_string("/proc/loadavg").unwrap_or_default();
    load.split(' ').take(1).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A share is changed in both places.
    #[test]
    fn the_shares_are_those_of_the_documentation() {
        let page = include_str!("../../docs/testing.md");
        for part in Part::ALL {
            let row = format!("| {} | {} |", part.name(), part.minutes());
            assert!(page.contains(&row), "docs/testing.md lacks {row}");
        }
    }

    #[test]
    fn a_part_beyond_its_share_is_told() {
        let mut stages = Stages::begin();
        stages.add("a", Part::Guest, Duration::from_secs(200));
        stages.add("b", Part::Guest, Duration::from_secs(221));
        stages.add("c", Part::Host, Duration::from_secs(300));
        let table = stages.table(true);
        let told: Vec<&str> = table.lines().filter(|line| line.ends_with("OVER ITS SHARE")).collect();
        assert!(matches!(told[..], [line] if line.starts_with("guest ")), "{table}");
        assert!(!stages.table(false).contains("SHARE"));
    }
}
