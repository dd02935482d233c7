//! The derive macro of nyx-inspect.
#![forbid(unsafe_code)]

use proc_macro::TokenStream;
use quote::quote;
use syn::{Attribute, Data, DeriveInput, Error, Fields, LitStr, Path, parse_macro_input};

/// Derives `nyx_inspect::Inspect` for a struct with named fields.
///
/// Every field is visited in order under its own name. `#[inspect(skip)]` leaves a field out,
/// `#[inspect(hex)]` shows a number in hexadecimal, `#[inspect(rename = "name")]` renames it.
/// `#[inspect(crate = "path")]` on the struct names another path to the crate.
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
}

fn options(attributes: &[Attribute]) -> Result<Options, Error> {
    let mut options = Options::default();
    for attribute in attributes.iter().filter(|a| a.path().is_ident("inspect")) {
        attribute.parse_nested_meta(|meta| {
            if meta.path.is_ident("skip") {
                options.skip = true;
            } else if meta.path.is_ident("hex") {
                options.hex = true;
            } else if meta.path.is_ident("rename") {
                options.rename = Some(meta.value()?.parse::<LitStr>()?.value());
            } else if meta.path.is_ident("crate") {
                options.krate = Some(meta.value()?.parse::<LitStr>()?.parse()?);
            } else {
                return Err(meta.error("expected skip, hex, rename or crate"));
            }
            Ok(())
        })?;
    }
    Ok(options)
}

fn expand(input: &DeriveInput) -> Result<proc_macro2::TokenStream, Error> {
    let name = &input.ident;
    let krate = options(&input.attrs)?
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
        visits.push(if options.hex {
            quote! { v.leaf(#shown, #krate::Leaf::Hex(#krate::AsHex::as_hex(&self.#ident))); }
        } else {
            quote! { #krate::Field::visit(&self.#ident, #shown, v); }
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
