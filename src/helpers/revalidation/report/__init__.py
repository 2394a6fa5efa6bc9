"""The report of a revalidation: `schema` (its form), `wording`, `html`, `html_detail`, `svg`, `markdown`, `files`, `diff`."""
