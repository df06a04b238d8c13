//! Adapters to and from the tensors of a PEFT directory.

use std::collections::HashMap;

use formats::adapter::AdapterTensor;

use super::{Adapter, invalid};
use crate::Result;
use crate::config::ModelConfig;
use crate::device::Device;
use crate::family::{self, Role};

impl<D: Device> Adapter<D> {
    /// The factors of each adapted layer under its PEFT module name.
    ///
    /// # Errors
    /// What the device meets.
    pub fn to_tensors(&self, config: &ModelConfig) -> Result<Vec<AdapterTensor>> {
        let weights = self.weights()?;
        let names = module_names(config);
        let tensor = |(layer, cols, member): (usize, usize, &super::Member)| AdapterTensor {
            module: names[&(layer, member.role)].clone(),
            a: weights[member.a.clone()].to_vec(),
            b: weights[member.b.clone()].to_vec(),
            magnitude: member.magnitude.clone().map(|range| weights[range].to_vec()),
            r: member.rank,
            in_features: cols,
            out_features: member.rows,
        };
        Ok(self.layout.members().map(tensor).collect())
    }

    /// Fills the adapter from tensors; each adapted layer must be there, and nothing else.
    ///
    /// # Errors
    /// [`crate::Error::InvalidAdapter`] naming the module that is missing, surplus, or of another shape.
    pub fn set_tensors(&mut self, config: &ModelConfig, tensors: &[AdapterTensor]) -> Result<()> {
        let names = module_names(config);
        let mut by_name: HashMap<&str, &AdapterTensor> =
            tensors.iter().map(|tensor| (tensor.module.as_str(), tensor)).collect();
        if by_name.len() != tensors.len() {
            return Err(invalid("module list", "a name twice", "each module once"));
        }
        let mut weights = vec![0.0; self.n_weights()];
        for (layer, cols, member) in self.layout.members() {
            let name = names[&(layer, member.role)].as_str();
            let tensor = by_name.remove(name).ok_or_else(|| invalid(name, "missing", "its two factors"))?;
            let (found, expected) =
                ((tensor.r, tensor.in_features, tensor.out_features), (member.rank, cols, member.rows));
            if found != expected || tensor.a.len() != member.a.len() || tensor.b.len() != member.b.len() {
                let expected = format!("{expected:?}");
                return Err(invalid(&format!("{name} (rank, in, out)"), format!("{found:?}"), &expected));
            }
            weights[member.a.clone()].copy_from_slice(&tensor.a);
            weights[member.b.clone()].copy_from_slice(&tensor.b);
            match (&member.magnitude, &tensor.magnitude) {
                (Some(range), Some(lengths)) if lengths.len() == range.len() => {
                    weights[range.clone()].copy_from_slice(lengths);
                }
                (None, None) => {}
                (expected, _) => {
                    let expected = if expected.is_some() { "one length an output" } else { "absent" };
                    return Err(invalid(&format!("{name} lengths of DoRA"), "other", expected));
                }
            }
        }
        match by_name.keys().min() {
            Some(surplus) => Err(invalid(surplus, "present", "only modules that the options target")),
            None => self.set_weights(&weights),
        }
    }
}

fn module_names(config: &ModelConfig) -> HashMap<(usize, Role), String> {
    let specs = family::tensors(config).into_iter();
    specs.filter_map(|spec| Some(((spec.layer?, spec.role), spec.module().to_owned()))).collect()
}
