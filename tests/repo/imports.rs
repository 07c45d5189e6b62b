//! Determines the imports between source files from the syntax trees.
//!
//! A name that a module only re-exports (`pub use`) counts as an import of the file that declares
//! it, so a facade creates no cycle. Unit tests and documentation do not count.

use std::collections::{BTreeMap, BTreeSet};

use syn::visit::Visit;

/// The path of a module: the crate's name, then a name per level.
pub(crate) type Module = Vec<String>;

/// The modules of several crates, each with its imports.
#[derive(Debug, Default)]
pub(crate) struct Imports {
    imports: BTreeMap<Module, BTreeSet<Module>>,
}

/// The paths in one file, as written.
#[derive(Debug, Default)]
struct Names {
    /// Paths in `use` declarations and in code; `true` where the file re-exports the name.
    paths: Vec<(Vec<String>, bool)>,
    /// Modules whose names are all re-exported by the file.
    globs: Vec<Vec<String>>,
    /// The names declared by the file.
    declared: BTreeSet<String>,
    /// Unqualified names in the code.
    used: BTreeSet<String>,
    /// Number of inline modules that enclose the current item.
    depth: usize,
}

impl Imports {
    /// Parses `files`, each given as the crate's name, the path below `src`, and the text.
    pub(crate) fn of(files: &[(String, String, String)]) -> Self {
        let names: BTreeMap<Module, Names> = files
            .iter()
            .map(|(krate, path, text)| {
                let tree = syn::parse_file(text).unwrap_or_else(|error| panic!("{path}: {error}"));
                let mut names = Names::default();
                names.visit_file(&tree);
                (module(krate, path), names)
            })
            .collect();
        let modules: BTreeSet<&Module> = names.keys().collect();
        let mut passed_on = BTreeMap::new();
        for (module, file) in &names {
            let globs = file.globs.iter();
            for target in globs.filter_map(|path| absolute(module, path, &modules)) {
                for name in names
                    .get(&target)
                    .into_iter()
                    .flat_map(|file| &file.declared)
                {
                    let path = [target.clone(), vec![name.clone()]].concat();
                    passed_on.insert((module.clone(), name.clone()), path);
                }
            }
        }
        for (module, names) in &names {
            for (path, passes_on) in &names.paths {
                if let (true, Some(target)) = (*passes_on, absolute(module, path, &modules)) {
                    let name = path.last().cloned().unwrap_or_default();
                    passed_on.insert((module.clone(), name), target);
                }
            }
        }
        let mut imports = BTreeMap::new();
        for (module, names) in &names {
            let found: &mut BTreeSet<Module> = imports.entry(module.clone()).or_default();
            for (path, passes_on) in &names.paths {
                let Some(path) = absolute(module, path, &modules) else {
                    continue;
                };
                let uses = path.last().is_some_and(|name| names.used.contains(name));
                if *passes_on && path.starts_with(module) && !uses {
                    continue;
                }
                found.extend(declared_in(path, &modules, &passed_on));
            }
            found.remove(module);
        }
        Self { imports }
    }

    /// Returns every pair of a module and a module that it imports.
    pub(crate) fn pairs(&self) -> impl Iterator<Item = (&Module, &Module)> {
        let each = self.imports.iter();
        each.flat_map(|(from, to)| to.iter().map(move |to| (from, to)))
    }

    /// Returns the groups of files that import each other in a cycle.
    pub(crate) fn circles(&self) -> Vec<Vec<&Module>> {
        let reach: BTreeMap<&Module, BTreeSet<&Module>> = self
            .imports
            .keys()
            .map(|module| (module, self.reachable(module)))
            .collect();
        let mut circles: Vec<Vec<&Module>> = Vec::new();
        for (module, reached) in &reach {
            if !reached.contains(module) || circles.iter().flatten().any(|seen| seen == module) {
                continue;
            }
            let back = |other: &&&Module| reach.get(**other).is_some_and(|r| r.contains(module));
            circles.push(reached.iter().filter(back).copied().collect());
        }
        circles
    }

    fn reachable(&self, start: &Module) -> BTreeSet<&Module> {
        let mut reached = BTreeSet::new();
        let mut rest: Vec<&Module> = self.imports.get(start).into_iter().flatten().collect();
        while let Some(module) = rest.pop() {
            if reached.insert(module) {
                rest.extend(self.imports.get(module).into_iter().flatten());
            }
        }
        reached
    }
}

impl Names {
    fn add(&mut self, mut path: Vec<String>, passes_on: bool) {
        // `super` inside an inline module means the file itself.
        let ups = path.iter().take_while(|part| *part == "super").count();
        let inside = ups.min(self.depth);
        path.drain(..inside);
        if inside > 0 && path.first().is_none_or(|part| part != "super") {
            path.insert(0, "self".to_owned());
        }
        self.paths.push((path, passes_on));
    }

    fn add_tree(&mut self, prefix: &[String], tree: &syn::UseTree, passes_on: bool) {
        let with = |name: &syn::Ident| [prefix, &[name.to_string()]].concat();
        match tree {
            syn::UseTree::Path(path) => self.add_tree(&with(&path.ident), &path.tree, passes_on),
            syn::UseTree::Name(name) if name.ident == "self" => {
                self.add(prefix.to_vec(), passes_on);
            }
            syn::UseTree::Name(name) => self.add(with(&name.ident), passes_on),
            syn::UseTree::Rename(name) => self.add(with(&name.ident), passes_on),
            syn::UseTree::Glob(_) => {
                if passes_on {
                    self.globs.push(prefix.to_vec());
                }
                self.add(prefix.to_vec(), passes_on);
            }
            syn::UseTree::Group(group) => {
                for tree in &group.items {
                    self.add_tree(prefix, tree, passes_on);
                }
            }
        }
    }
}

impl<'ast> Visit<'ast> for Names {
    fn visit_item(&mut self, item: &'ast syn::Item) {
        let declared = match item {
            syn::Item::Const(item) => Some(&item.ident),
            syn::Item::Enum(item) => Some(&item.ident),
            syn::Item::Fn(item) => Some(&item.sig.ident),
            syn::Item::Static(item) => Some(&item.ident),
            syn::Item::Struct(item) => Some(&item.ident),
            syn::Item::Trait(item) => Some(&item.ident),
            syn::Item::Type(item) => Some(&item.ident),
            _ => None,
        };
        self.declared.extend(declared.map(ToString::to_string));
        let attributes = match item {
            syn::Item::Mod(item) => &item.attrs,
            syn::Item::Use(item) => &item.attrs,
            syn::Item::Fn(item) => &item.attrs,
            syn::Item::Impl(item) => &item.attrs,
            _ => &Vec::new(),
        };
        if !attributes.iter().any(is_test_only) {
            syn::visit::visit_item(self, item);
        }
    }

    fn visit_item_mod(&mut self, item: &'ast syn::ItemMod) {
        self.depth += 1;
        syn::visit::visit_item_mod(self, item);
        self.depth -= 1;
    }

    fn visit_item_use(&mut self, item: &'ast syn::ItemUse) {
        let passes_on = !matches!(item.vis, syn::Visibility::Inherited);
        self.add_tree(&[], &item.tree, passes_on);
    }

    fn visit_path(&mut self, path: &'ast syn::Path) {
        let mut parts = path.segments.iter().map(|part| part.ident.to_string());
        // A single name may be a variable; an item of another file has a path or a `use`.
        if path.segments.len() > 1 {
            self.add(parts.collect(), false);
        } else {
            self.used.extend(parts.next());
        }
        syn::visit::visit_path(self, path);
    }

    // A documentation comment is an attribute; a link in it is not an import.
    fn visit_attribute(&mut self, _: &'ast syn::Attribute) {}

    fn visit_visibility(&mut self, _: &'ast syn::Visibility) {}
}

fn is_test_only(attribute: &syn::Attribute) -> bool {
    attribute.path().is_ident("cfg")
        && attribute
            .parse_args::<syn::Ident>()
            .is_ok_and(|condition| condition == "test")
}

fn module(krate: &str, path: &str) -> Module {
    let names = path.trim_end_matches(".rs").split('/').map(str::to_owned);
    let names = names.filter(|name| name != "lib" && name != "main");
    [krate.to_owned()].into_iter().chain(names).collect()
}

/// Returns the path from the root of its crate; `None` for a name from outside.
fn absolute(from: &Module, path: &[String], modules: &BTreeSet<&Module>) -> Option<Module> {
    let (first, rest) = path.split_first()?;
    let known = |start: Module| modules.contains(&start).then_some(start);
    let start = match first.as_str() {
        "crate" => from[..1].to_vec(),
        "self" => from.clone(),
        "super" => {
            let ups = path.iter().take_while(|part| *part == "super").count();
            let start = from[..from.len().saturating_sub(ups)].to_vec();
            return Some([start, path[ups..].to_vec()].concat());
        }
        // A child module, or another crate of the workspace.
        name => known([from.clone(), vec![name.to_owned()]].concat())
            .or_else(|| known(vec![name.to_owned()]))?,
    };
    Some([start, rest.to_vec()].concat())
}

/// Returns the module that declares the item at `path`.
fn declared_in(
    path: Module,
    modules: &BTreeSet<&Module>,
    passed_on: &BTreeMap<(Module, String), Module>,
) -> Option<Module> {
    let mut path = path;
    // A name may be re-exported repeatedly.
    for _ in 0..modules.len() {
        let length = (1..=path.len())
            .rev()
            .find(|length| modules.contains(&path[..*length].to_vec()))?;
        let module = path[..length].to_vec();
        let next = path.get(length).cloned();
        let target = next.and_then(|name| passed_on.get(&(module.clone(), name)));
        match target {
            Some(target) if *target != path => {
                path = [target.clone(), path[length + 1..].to_vec()].concat();
            }
            // The root of a crate only declares its modules.
            _ => return (module.len() > 1 || path.len() == 1).then_some(module),
        }
    }
    panic!("{path:?} is passed on in a circle");
}
