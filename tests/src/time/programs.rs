//! Other people's programs, by other people's ways to read a clock.

mod sources;

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use self::sources::{C, GO, JAVA, PYTHON};
use super::scene::{Scene, end};
use crate::{
    cgroup::Cgroup,
    ensure,
    error::{Context, Result},
    harness::{Need, Test, die_with_parent, program},
};

pub(super) const TESTS: &[Test] = &[
    Test::new("time::date", date).needs(of(&[Need::Program("date")])).timeout(60),
    Test::new("time::a_c_program", c).needs(of(&[Need::Program("cc")])).timeout(90),
    Test::new("time::a_static_c_program", static_c).needs(of(&[Need::Program("musl-gcc")])).timeout(90),
    Test::new("time::python", python).needs(of(&[Need::Program("python3")])).timeout(90),
    Test::new("time::runtimes_of_their_own", runtimes).timeout(300).slow(),
    Test::new("time::a_certificate_expires", certificate).needs(of(&[Need::Program("openssl")])).timeout(90),
];

const fn of(needs: &'static [Need]) -> &'static [Need] {
    needs
}

/// As it is written, and in seconds.
const OFFSET: (&str, i64) = ("--offset -2d", -2 * 86_400);
/// What a program may take from its look at the clock until its word is here.
const SLOW: i64 = 30;

/// How often a program is begun until it is met.
const TRIES: u32 = 5;

/// A program that prints the time in whole seconds, in every way it has, one in a line.
struct Teller {
    words: Vec<String>,
    folder: PathBuf,
}

impl Teller {
    fn new(words: &[&str], folder: &Path) -> Self {
        Self { words: words.iter().map(ToString::to_string).collect(), folder: folder.into() }
    }

    /// How far what it prints is from the truth, in seconds.
    fn ahead(&self, cgroup: &Cgroup) -> Result<Vec<i64>> {
        let (before, said) = (now()?, run(Some(cgroup), &self.words, &self.folder)?);
        let after = now()?;
        ensure!(after - before < SLOW, "{:?} took {} s", self.words, after - before);
        let told = said.split_whitespace().map(|word| word.parse::<i64>().context(&said));
        let told = told.collect::<Result<Vec<_>>>()?;
        ensure!(!told.is_empty(), "{:?} says nothing", self.words);
        // Nothing if it is within the time that it took.
        Ok(told
            .iter()
            .map(|time| if *time < before - 1 { time - before } else { (time - after).max(0) })
            .collect())
    }

    /// Fails unless all that it prints is ahead by so much.
    fn says(&self, cgroup: &Cgroup, expected: i64) -> Result {
        let ahead = self.ahead(cgroup)?;
        let right = ahead.iter().all(|ahead| (ahead - expected).abs() <= SLOW);
        ensure!(right, "{:?} is {ahead:?} s ahead, not {expected}", self.words);
        Ok(())
    }
}

/// Has a program begin again if it was not met before it looked at the clock: how often that may be is another test's.
fn met(attempt: impl Fn() -> Result) -> Result {
    let tries = (1..TRIES).find(|number| {
        let done = attempt();
        done.as_ref().err().inspect(|failure| println!("try {number}: {failure}"));
        done.is_ok()
    });
    tries.map_or_else(attempt, |_| Ok(()))
}

/// By the machine's own clock, in seconds.
fn now() -> Result<i64> {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).context("before 1970")?;
    Ok(now.as_secs() as i64)
}

/// Runs a program in a cgroup, from its first instruction on, or where this process is.
fn run(cgroup: Option<&Cgroup>, words: &[String], folder: &Path) -> Result<String> {
    let [name, arguments @ ..] = words else { return Ok(String::new()) };
    let path = if name.contains('/') { Some(PathBuf::from(name)) } else { program(name) };
    let mut command = Command::new(path.context(format_args!("no program {name}"))?);
    command.args(arguments).current_dir(folder).env("TZ", "UTC").env("LC_ALL", "C");
    die_with_parent(&mut command);
    cgroup.map_or(Ok(()), |cgroup| cgroup.admit(&mut command))?;
    let output = command.output().context(name)?;
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    let (said, complained) = (text(&output.stdout), text(&output.stderr));
    ensure!(output.status.success(), "{words:?}: {}: {said}{complained}", output.status);
    Ok(said)
}

/// Before, during and after, beside the same program in another cgroup. All that a line tells must be as much ahead.
fn compared(tellers: &[Teller]) -> Result {
    let mut scene = Scene::set()?;
    let check = |scene: &Scene, target: i64, when: &str| {
        for teller in tellers {
            met(|| teller.says(&scene.cgroup, target)).context(when)?;
            teller.says(&scene.beside, 0).context(format_args!("{when}: the bystander"))?;
        }
        Ok::<_, crate::error::Failure>(())
    };
    check(&scene, 0, "before")?;
    let (fault, _) = scene.armed(OFFSET.0)?;
    check(&scene, OFFSET.1, "armed")?;
    end(&fault)?;
    check(&scene, 0, "afterwards")?;
    scene.over("afterwards")
}

/// A folder of this test's. Removed when dropped.
struct Folder(PathBuf);

impl Folder {
    fn new() -> Result<Self> {
        let path = std::env::temp_dir().join(format!("fl-time-programs-{}", std::process::id()));
        fs::create_dir_all(&path).context(path.display())?;
        Ok(Self(path))
    }

    /// Writes a file, and returns its path.
    fn write(&self, name: &str, text: &str) -> Result<String> {
        let path = self.0.join(name);
        fs::write(&path, text).context(path.display())?;
        Ok(path.to_string_lossy().into_owned())
    }

    /// Has a compiler make a program of a source, which is called the same without what is after the dot.
    fn compile(&self, words: &[&str]) -> Result {
        let words: Vec<String> = words.iter().map(ToString::to_string).collect();
        run(None, &words, &self.0).map(drop)
    }

    fn teller(&self, words: &[&str]) -> Teller {
        Teller::new(words, &self.0)
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

fn date() -> Result {
    let folder = Folder::new()?;
    compared(&[folder.teller(&["date", "+%s"])])
}

/// With glibc, dynamically and statically.
fn c() -> Result {
    let folder = Folder::new()?;
    let source = folder.write("tell.c", C)?;
    folder.compile(&["cc", "-O1", "-pthread", "-o", "tell", &source])?;
    // All that a dynamic program calls is the vDSO's.
    compared(&[folder.teller(&["./tell", "all"])])
}

/// musl looks for `clock_gettime` alone.
fn static_c() -> Result {
    let folder = Folder::new()?;
    let source = folder.write("tell.c", C)?;
    folder.compile(&["musl-gcc", "-O1", "-static", "-pthread", "-o", "tell", &source])?;
    compared(&[folder.teller(&["./tell", "all"])])
}

fn python() -> Result {
    let folder = Folder::new()?;
    compared(&[folder.teller(&["python3", "-c", PYTHON])])
}

/// Go reads the vDSO's tables itself; Java keeps a function pointer. Compiling takes minutes under emulation.
fn runtimes() -> Result {
    let folder = Folder::new()?;
    let mut tellers = Vec::new();
    if program("go").is_some() {
        let (source, home) = (folder.write("tell.go", GO)?, folder.0.to_string_lossy().into_owned());
        let cache = format!("GOCACHE={home}/cache");
        let words = ["env", "CGO_ENABLED=0", "GOFLAGS=-mod=mod", "GO111MODULE=off", &cache, "go", "build"];
        folder.compile(&[&words[..], &["-o", "tell-go", &source]].concat())?;
        tellers.push(folder.teller(&["./tell-go"]));
    } else {
        println!("no go here");
    }
    if program("javac").is_some() {
        folder.compile(&["javac", &folder.write("Tell.java", JAVA)?])?;
        tellers.push(folder.teller(&["java", "-cp", ".", "Tell"]));
    } else if program("java").is_some() {
        let source = folder.write("Tell.java", JAVA)?;
        if run(None, &["java".into(), source.clone()], &folder.0).is_ok() {
            tellers.push(folder.teller(&["java", &source]));
        } else {
            println!("a java without a compiler here");
        }
    } else {
        println!("no java here");
    }
    ensure!(!tellers.is_empty(), "neither go nor java");
    compared(&tellers)
}

/// Good for a day from now, it has expired in two.
fn certificate() -> Result {
    let folder = Folder::new()?;
    folder.compile(&[
        "openssl",
        "req",
        "-x509",
        "-newkey",
        "ec",
        "-pkeyopt",
        "ec_paramgen_curve:P-256",
        "-nodes",
        "-subj",
        "/CN=faultline.test",
        "-days",
        "1",
        "-keyout",
        "key",
        "-out",
        "certificate",
    ])?;
    let words = ["openssl", "verify", "-CAfile", "certificate", "certificate"].map(String::from);
    let verify = |cgroup: &Cgroup| run(Some(cgroup), &words, &folder.0);
    let good = |cgroup: &Cgroup, when: &str| {
        let said = verify(cgroup).context(when)?;
        ensure!(said.trim() == "certificate: OK", "{when}: {said:?}");
        Ok::<_, crate::error::Failure>(())
    };
    let mut scene = Scene::set()?;
    good(&scene.cgroup, "before")?;
    for (offset, words) in [("2d", "has expired"), ("-2d", "is not yet valid")] {
        let (fault, _) = scene.armed(&format!("--offset {offset}"))?;
        met(|| {
            let said = verify(&scene.cgroup);
            let refused = said.as_ref().err().is_some_and(|failure| failure.to_string().contains(words));
            ensure!(refused, "{offset}: {said:?}, not {words:?}");
            Ok(())
        })?;
        good(&scene.beside, "the bystander")?;
        end(&fault)?;
        good(&scene.cgroup, "afterwards")?;
    }
    scene.target.until(0, Duration::from_millis(100))?;
    scene.over("afterwards")
}
