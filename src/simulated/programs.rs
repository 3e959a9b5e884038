//! iptables, ip6tables and ipset in memory, for tests: as atomic as they are, and no more. A table changes in one step or not at all;
//! sets change line by line, and those before a failing line stay changed.

use std::collections::BTreeMap;

use crate::world::{ProgramError, Programs};

/// A table `filter`: chains by name, with their rules.
type Table = BTreeMap<String, Vec<String>>;

/// What the three programs hold.
#[derive(Debug, Clone)]
pub struct SimulatedPrograms {
    tables: [Table; 2],
    /// Sets by name: what `create` said, and elements with what stands behind them.
    sets: BTreeMap<String, (String, BTreeMap<String, String>)>,
    /// How many more runs succeed, and how many fail then.
    failing: Option<(usize, usize)>,
    runs: usize,
}

impl Default for SimulatedPrograms {
    fn default() -> SimulatedPrograms {
        let built_in: Table = ["FORWARD", "INPUT", "OUTPUT"].map(|chain| (chain.to_string(), Vec::new())).into();
        SimulatedPrograms { tables: [built_in.clone(), built_in], sets: BTreeMap::new(), failing: None, runs: 0 }
    }
}

impl SimulatedPrograms {
    /// Makes runs fail, after so many that succeed.
    pub fn fail(&mut self, after: usize, times: usize) {
        self.failing = Some((after, times));
    }

    /// Makes every run succeed again.
    pub fn mend(&mut self) {
        self.failing = None;
    }

    /// How many runs there were.
    pub fn runs(&self) -> usize {
        self.runs
    }

    fn strike(&mut self, program: &str) -> Result<(), ProgramError> {
        self.runs += 1;
        match &mut self.failing {
            Some((0, 0)) | None => Ok(()),
            Some((0, times)) => {
                *times -= 1;
                Err(ProgramError::Failed(program.to_string(), "it was told to fail".to_string()))
            }
            Some((after, _)) => {
                *after -= 1;
                Ok(())
            }
        }
    }

    fn save(&self, family: usize) -> String {
        let table = &self.tables[family];
        let mut out = "*filter\n".to_string();
        table.keys().for_each(|name| out.push_str(&format!(":{name} - [0:0]\n")));
        for (name, rules) in table {
            rules.iter().for_each(|rule| out.push_str(&format!("-A {name} {rule}\n")));
        }
        out + "COMMIT\n"
    }

    /// All lines on a copy.
    fn restore(&self, family: usize, input: &str) -> Result<Table, String> {
        let mut table = self.tables[family].clone();
        for line in input.lines().filter(|line| !matches!(*line, "*filter" | "COMMIT")) {
            table_line(&mut table, line).ok_or_else(|| format!("line `{line}` failed"))?;
        }
        let targets = |rule: &String| rule.rsplit(' ').next().filter(|word| word.starts_with("EGRESSGUARD-")).map(str::to_string);
        match table.values().flatten().filter_map(targets).find(|target| !table.contains_key(target)) {
            Some(missing) => Err(format!("there is no chain `{missing}`")),
            None => Ok(table),
        }
    }

    fn set_line(&mut self, line: &str) -> Option<()> {
        let words: Vec<&str> = line.split(' ').collect();
        match words.as_slice() {
            ["create", name, def @ ..] => {
                let (def, exist) = match def {
                    [def @ .., "-exist"] => (def.join(" "), true),
                    def => (def.join(" "), false),
                };
                let there = self.sets.get(*name).map(|(known, _)| *known == def);
                match there {
                    None => drop(self.sets.insert((*name).to_string(), (def, BTreeMap::new()))),
                    Some(same) if exist && same => {}
                    Some(_) => return None,
                }
            }
            ["add", name, element, rest @ ..] => {
                self.sets.get_mut(*name)?.1.insert((*element).to_string(), rest.join(" "));
            }
            ["swap", one, other] => {
                let (first, second) = (self.sets.remove(*one)?, self.sets.remove(*other)?);
                self.sets.insert((*one).to_string(), second);
                self.sets.insert((*other).to_string(), first);
            }
            ["destroy", name] => {
                let used = self.tables.iter().flat_map(BTreeMap::values).flatten().any(|rule| rule.contains(&format!(" {name} ")));
                if used || self.sets.remove(*name).is_none() {
                    return None;
                }
            }
            _ => return None,
        }
        Some(())
    }
}

/// One line of a restore; `None` when it fails.
fn table_line(table: &mut Table, line: &str) -> Option<()> {
    if let Some(declared) = line.strip_prefix(':') {
        table.insert(declared.split(' ').next()?.to_string(), Vec::new());
        return Some(());
    }
    let mut words = line.splitn(3, ' ');
    let (verb, chain, rest) = (words.next()?, words.next()?, words.next().unwrap_or_default());
    let rules = table.get_mut(chain)?;
    match verb {
        "-A" => rules.push(rest.to_string()),
        "-I" => {
            let (place, rule) = rest.split_once(' ')?;
            let place = place.parse::<usize>().ok()?.checked_sub(1).filter(|place| *place <= rules.len())?;
            rules.insert(place, rule.to_string());
        }
        "-D" => drop(rules.remove(rules.iter().position(|rule| rule == rest)?)),
        "-F" => rules.clear(),
        "-X" => {
            let used = table.values().flatten().any(|rule| rule.rsplit(' ').next() == Some(chain));
            if used || !table.remove(chain)?.is_empty() {
                return None;
            }
        }
        _ => return None,
    }
    Some(())
}

impl Programs for SimulatedPrograms {
    fn run(&mut self, program: &str, arguments: &[&str], input: &str) -> Result<String, ProgramError> {
        self.strike(program)?;
        let failed = |why: String| ProgramError::Failed(program.to_string(), why);
        let family = usize::from(program.starts_with("ip6"));
        match (program, arguments) {
            ("iptables-save" | "ip6tables-save", _) => Ok(self.save(family)),
            ("iptables-restore" | "ip6tables-restore", arguments) => {
                let table = self.restore(family, input).map_err(failed)?;
                if !arguments.contains(&"--test") {
                    self.tables[family] = table;
                }
                Ok(String::new())
            }
            ("ipset", ["save"]) => {
                let mut out = String::new();
                for (name, (def, elements)) in &self.sets {
                    out.push_str(&format!("create {name} {def}\n"));
                    elements.iter().for_each(|(element, rest)| out.push_str(&format!("add {name} {element} {rest}\n")));
                }
                Ok(out)
            }
            ("ipset", ["restore"]) => {
                for line in input.lines() {
                    self.set_line(line).ok_or_else(|| failed(format!("line `{line}` failed")))?;
                }
                Ok(String::new())
            }
            _ => Err(ProgramError::Missing(program.to_string())),
        }
    }
}
