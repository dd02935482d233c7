//! The derive macro of nyx-inspect.
#![forbid(unsafe_code)]

use proc_macro::TokenStream;
use quote::quote;
use syn::{
    Attribute, Data, DeriveInput, Error, Expr, ExprLit, Fields, Lit, LitStr, Meta, Path,
    parse_macro_input,
};

/// Derives `nyx_inspect::Inspect` for a struct with named fields.
///
/// Every field is visited in order under its own name; the first paragraph of its doc comment is the
/// help text of its metric.
///
/// | On | Attribute | Meaning |
/// |---|---|---|
/// | struct | `#[inspect(prefix = "blk")]` | metric names begin so: `nyx_blk_…` |
/// | struct | `#[inspect(crate = "path")]` | another path to the crate |
/// | field | `#[inspect(skip)]` | left out |
/// | field | `#[inspect(hex)]` | a number shown in hexadecimal |
/// | field | `#[inspect(rename = "name")]` | another name in the tree |
/// | field | `#[inspect(metric = "requests")]` | another name on the metrics page, after the prefix |
/// | field | `#[inspect(label(op = "read"))]` | a label of its own: fields that share a metric |
/// | field | `#[inspect(help = "text")]` | a help text other than the doc comment |
/// | field | `#[inspect(items = "pin")]` | a list or map: the label that tells its items apart |
#[proc_macro_derive(Inspect, attributes(inspect))]
pub fn derive_inspect(input: TokenStream) -> TokenStream {
    let input = parse_macro_input!(input as DeriveInput);
    expand(&input)
        .unwrap_or_else(Error::into_compile_error)
        .into()
}

#[derive(Default)]
struct Options {
    skip: bool,
    hex: bool,
    rename: Option<String>,
    krate: Option<Path>,
    prefix: Option<String>,
    metric: Option<String>,
    help: Option<String>,
    items: Option<String>,
    labels: Vec<(String, String)>,
}

fn options(attributes: &[Attribute]) -> Result<Options, Error> {
    let mut options = Options::default();
    for attribute in attributes.iter().filter(|a| a.path().is_ident("inspect")) {
        attribute.parse_nested_meta(|meta| {
            let text = || Ok::<_, Error>(meta.value()?.parse::<LitStr>()?.value());
            if meta.path.is_ident("skip") {
                options.skip = true;
            } else if meta.path.is_ident("hex") {
                options.hex = true;
            } else if meta.path.is_ident("rename") {
                options.rename = Some(text()?);
            } else if meta.path.is_ident("prefix") {
                options.prefix = Some(text()?);
            } else if meta.path.is_ident("metric") {
                options.metric = Some(text()?);
            } else if meta.path.is_ident("help") {
                options.help = Some(text()?);
            } else if meta.path.is_ident("items") {
                options.items = Some(text()?);
            } else if meta.path.is_ident("label") {
                meta.parse_nested_meta(|label| {
                    let name = label.path.require_ident()?.to_string();
                    let value = label.value()?.parse::<LitStr>()?.value();
                    options.labels.push((name, value));
                    Ok(())
                })?;
            } else if meta.path.is_ident("crate") {
                options.krate = Some(meta.value()?.parse::<LitStr>()?.parse()?);
            } else {
                return Err(meta.error(
                    "expected skip, hex, rename, prefix, metric, help, items, label or crate",
                ));
            }
            Ok(())
        })?;
    }
    Ok(options)
}

/// The first paragraph of the doc comment, on one line, without the marks of code and links.
fn documentation(attributes: &[Attribute]) -> String {
    let mut words = Vec::new();
    for attribute in attributes.iter().filter(|a| a.path().is_ident("doc")) {
        let Meta::NameValue(pair) = &attribute.meta else {
            continue;
        };
        let Expr::Lit(ExprLit {
            lit: Lit::Str(line),
            ..
        }) = &pair.value
        else {
            continue;
        };
        let line = line.value();
        if line.trim().is_empty() && !words.is_empty() {
            break;
        }
        words.extend(line.split_whitespace().map(str::to_owned));
    }
    words
        .join(" ")
        .replace("[`", "")
        .replace("`]", "")
        .replace('`', "")
}

fn expand(input: &DeriveInput) -> Result<proc_macro2::TokenStream, Error> {
    let name = &input.ident;
    let own = options(&input.attrs)?;
    let krate = own
        .krate
        .unwrap_or_else(|| syn::parse_quote!(::nyx_inspect));
    let Data::Struct(data) = &input.data else {
        return Err(Error::new_spanned(
            name,
            "Inspect is derived for structs only",
        ));
    };
    let Fields::Named(fields) = &data.fields else {
        return Err(Error::new_spanned(name, "Inspect needs named fields"));
    };
    let mut visits = Vec::new();
    for field in &fields.named {
        let options = options(&field.attrs)?;
        if options.skip {
            continue;
        }
        let ident = &field.ident;
        let plain = ident.as_ref().map(ToString::to_string).unwrap_or_default();
        let shown = options.rename.unwrap_or(plain);
        if options.hex {
            visits.push(
                quote! { v.leaf(#shown, #krate::Leaf::Hex(#krate::AsHex::as_hex(&self.#ident))); },
            );
            continue;
        }
        let metric = options.metric.unwrap_or_else(|| shown.clone());
        let metric = match &own.prefix {
            Some(prefix) => format!("{prefix}_{metric}"),
            None => metric,
        };
        let help = options.help.unwrap_or_else(|| documentation(&field.attrs));
        let items = options.items.unwrap_or_default();
        let labels = options.labels.iter().map(|(name, value)| {
            quote! { (#name, #value) }
        });
        visits.push(quote! {
            v.about(&#krate::About {
                help: #help,
                metric: #metric,
                labels: &[#(#labels),*],
                key: "",
                items: #items,
            });
            #krate::Field::visit(&self.#ident, #shown, v);
        });
    }
    let (impl_generics, type_generics, clause) = input.generics.split_for_impl();
    Ok(quote! {
        impl #impl_generics #krate::Inspect for #name #type_generics #clause {
            fn inspect(&self, v: &mut dyn #krate::Visitor) {
                let _ = &v;
                #(#visits)*
            }
        }
    })
}
