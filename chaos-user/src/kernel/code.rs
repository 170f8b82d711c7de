//! An object whose programs are loaded several times, each time with other constants and for another place in the kernel.
//!
//! aya loads a program once, and does not know `fmod_ret`; its parser and relocator do the work here as well.

use std::{
    collections::HashMap,
    io,
    os::fd::{AsFd, AsRawFd, OwnedFd, RawFd},
};

use aya::{Ebpf, EbpfLoader, maps::Map};
use aya_obj::{
    Object,
    generated::{bpf_attach_type, bpf_prog_type},
};

use super::{
    Error, Result,
    btf::KernelTypes,
    fields,
    mechanism::Mechanism,
    sys::{self, Functions, Program},
};

/// The map that a program's constants lie in.
const CONSTANTS: &str = ".rodata";

/// An object, and its maps in the kernel.
#[derive(Debug)]
pub struct Code {
    object: Object,
    types: Option<OwnedFd>,
    maps: Ebpf,
}

impl Code {
    /// Creates the maps, sized as is said.
    ///
    /// # Errors
    ///
    /// The kernel's.
    pub fn new(bytes: &[u8], sizes: &[(&'static str, u32)]) -> Result<Self> {
        let mut loader = EbpfLoader::new();
        for (name, entries) in sizes {
            loader.map_max_entries(name, *entries);
        }
        let maps = loader.load(bytes).map_err(|error| Error::aya("load", "the maps", &error))?;
        let mut object = Object::parse(bytes).map_err(|error| unusable(&error))?;
        let types = match aya::features().btf() {
            Some(features) => {
                let types = object.fixup_and_sanitize_btf(features).map_err(|error| unusable(&error))?;
                types.map(|types| sys::load_types(&types.to_bytes())).transpose()?
            }
            None => None,
        };
        Ok(Self { object, types, maps })
    }

    /// The maps.
    pub fn maps(&self) -> &Ebpf {
        &self.maps
    }

    /// The maps, to be written.
    pub fn maps_mut(&mut self) -> &mut Ebpf {
        &mut self.maps
    }

    /// Loads a program for a function, or for a tracepoint, by a mechanism, with these constants under their name.
    ///
    /// # Errors
    ///
    /// The kernel's, with the end of the verifier's log.
    pub fn load(
        &self,
        program: &'static str,
        mechanism: Mechanism,
        function: &str,
        types: &KernelTypes,
        (name, constants): (&'static str, &[u8]),
    ) -> Result<OwnedFd> {
        let mut object = self.object.clone();
        object
            .patch_map_data(HashMap::from([(name, (constants, true))]))
            .map_err(|error| unusable(&error))?;
        // Held until the program is loaded, which then holds it itself.
        let constants = match object.maps.get(CONSTANTS) {
            Some(map) => sys::constants(map.data())?,
            None => return Err(Error::new("look-up", CONSTANTS, io::ErrorKind::NotFound.into())),
        };
        self.relocate(&mut object, constants.as_raw_fd())?;
        let found = object.programs.get(program);
        let function_of = |it: &aya_obj::Program| object.functions.get(&(it.section_index, it.address));
        let code = found
            .and_then(function_of)
            .ok_or_else(|| Error::new("look-up", program, io::ErrorKind::NotFound.into()))?;
        let starts: Vec<[u32; 2]> = code
            .func_info
            .func_info_bytes()
            .chunks_exact(8)
            .map(|it| [0, 4].map(|at| u32::from_ne_bytes([it[at], it[at + 1], it[at + 2], it[at + 3]])))
            .collect();
        let (kind, attach) = kind(mechanism);
        let attach_btf_id = if attach.is_some() { types.function(function)? } else { 0 };
        let functions = self.types.as_ref().map(|types| Functions { types: types.as_fd(), starts: &starts });
        let instructions = &code.instructions;
        sys::load(&Program { name: program, kind, attach, attach_btf_id, flags: 0, instructions, functions })
            .map_err(|error| fields::explain(error, types))
    }

    fn relocate(&self, object: &mut Object, constants: RawFd) -> Result<()> {
        let described = std::mem::take(&mut object.maps);
        let fd = |name: &str| match name {
            CONSTANTS => Some(constants),
            name => self.maps.map(name).and_then(fd_of),
        };
        let maps: Vec<_> =
            described.iter().filter_map(|(name, map)| Some((name.as_str(), fd(name)?, map))).collect();
        let sections = object.functions.keys().map(|(section, _)| *section).collect();
        object.relocate_maps(maps.into_iter(), &sections).map_err(|error| unusable(&error))?;
        object.relocate_calls(&sections).map_err(|error| unusable(&error))?;
        object.sanitize_functions(aya::features());
        Ok(())
    }
}

/// What a program is loaded as.
fn kind(mechanism: Mechanism) -> (bpf_prog_type, Option<bpf_attach_type>) {
    use bpf_prog_type::{
        BPF_PROG_TYPE_KPROBE, BPF_PROG_TYPE_LSM, BPF_PROG_TYPE_RAW_TRACEPOINT, BPF_PROG_TYPE_TRACING,
    };
    match mechanism {
        Mechanism::Lsm => (BPF_PROG_TYPE_LSM, Some(bpf_attach_type::BPF_LSM_MAC)),
        Mechanism::FmodRetSecurity | Mechanism::FmodRetSyscall => {
            (BPF_PROG_TYPE_TRACING, Some(bpf_attach_type::BPF_MODIFY_RETURN))
        }
        Mechanism::Fentry => (BPF_PROG_TYPE_TRACING, Some(bpf_attach_type::BPF_TRACE_FENTRY)),
        Mechanism::Fexit => (BPF_PROG_TYPE_TRACING, Some(bpf_attach_type::BPF_TRACE_FEXIT)),
        Mechanism::KprobeOverride | Mechanism::Kprobe => (BPF_PROG_TYPE_KPROBE, None),
        _ => (BPF_PROG_TYPE_RAW_TRACEPOINT, None),
    }
}

fn fd_of(map: &Map) -> Option<RawFd> {
    match map {
        Map::Array(data) | Map::PerCpuArray(data) | Map::HashMap(data) | Map::RingBuf(data) => {
            Some(data.fd().as_fd().as_raw_fd())
        }
        _ => None,
    }
}

fn unusable(error: &dyn std::error::Error) -> Error {
    Error::new("parse", "the programs", io::Error::new(io::ErrorKind::InvalidData, chain(error)))
}

/// An error with what it came of.
fn chain(error: &dyn std::error::Error) -> String {
    let causes = std::iter::successors(Some(error), |error| error.source());
    causes.map(ToString::to_string).collect::<Vec<_>>().join(": ")
}
