// The module of a cell's source in which evcxr keeps variables from cell to cell, for the library of all crates. Its
// functions and messages are evcxr's, which names them in what it writes.

use std::any::{Any, TypeId};
use std::collections::HashMap;
use std::sync::Arc;

pub const VARIABLE_CHANGED_TYPE: &str = "EVCXR_VARIABLE_CHANGED_TYPE:";
pub const USER_ERROR_OCCURRED: &str = "EVCXR_ERROR_OCCURRED";

#[derive(Default)]
pub struct VariableStore {
    variables: std::collections::HashMap<String, Box<dyn std::any::Any + 'static>>,
}

impl VariableStore {
    pub fn put_variable<T: 'static>(&mut self, name: &str, value: T) {
        self.put(name, Box::new(value));
    }

    pub fn check_variable<T: 'static>(&mut self, name: &str) -> bool {
        self.check(name, TypeId::of::<T>())
    }

    pub fn take_variable<T: 'static>(&mut self, name: &str) -> T {
        let Ok(value) = self.take(name).downcast() else { panic!("Variable changed type") };
        *value
    }

    /// By this method of the kernel's, a cell puts back what it would have replaced.
    pub fn put_back_what_was_replaced<T: 'static>(&mut self, name: &str, value: T) {
        if !self.contains(name) {
            self.put(name, Box::new(value));
        }
    }

    pub fn lazy_arc<T: 'static, F: FnOnce() -> T>(&mut self, name: &str, create: F) -> Arc<T> {
        let value = self.variables.entry(name.to_owned()).or_insert_with(|| Box::new(Arc::new(create())));
        let value = value.downcast_ref::<Arc<T>>();
        Arc::clone(value.unwrap_or_else(|| panic!("lazy_arc {name} changed type")))
    }

    // Cells need not compile what is not generic.
    fn put(&mut self, name: &str, value: Box<dyn Any>) {
        self.variables.insert(name.to_owned(), value);
    }

    fn check(&self, name: &str, expected: TypeId) -> bool {
        let same = self.variables.get(name).is_none_or(|value| (**value).type_id() == expected);
        if !same {
            eprintln!("The type of the variable {name} was redefined, so was lost.");
            println!("{VARIABLE_CHANGED_TYPE}{name}");
        }
        same
    }

    fn take(&mut self, name: &str) -> Box<dyn Any> {
        self.variables.remove(name).unwrap_or_else(|| panic!("Variable '{name}' has gone missing"))
    }

    fn contains(&self, name: &str) -> bool {
        self.variables.contains_key(name)
    }
}

pub fn create_variable_store() -> *mut VariableStore {
    Box::into_raw(Box::default())
}
