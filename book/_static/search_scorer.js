// How the search orders what it found: sphinx's own numbers, but a title that holds the whole query stands first.
// Without this a title that has all of the words scores below titles that have one of them.
var Scorer = {
  score: ([, title, , , score]) => {
    const query = (new URLSearchParams(window.location.search).get("q") || "").toLowerCase().trim();
    return query.includes(" ") && title.toLowerCase().includes(query) ? score + 100 : score;
  },
  objNameMatch: 11,
  objPartialMatch: 6,
  objPrio: { 0: 15, 1: 5, 2: -5 },
  objPrioDefault: 0,
  title: 15,
  partialTitle: 7,
  term: 5,
  partialTerm: 2,
};
