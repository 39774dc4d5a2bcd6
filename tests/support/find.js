// Finds what a person would: what is shown, by its role and its name, by its words, or by the row that it stands in.
const isShown = (el) => el.getClientRects().length > 0 && el.checkVisibility({ visibilityProperty: true });

const ROLES = {
  alert: "[role=alert]",
  button: "button, summary, input[type=submit], input[type=button], [role=button]",
  checkbox: "input[type=checkbox], [role=checkbox]",
  dialog: "dialog[open], [role=dialog]",
  heading: "h1, h2, h3, h4, [role=heading]",
  img: "img, [role=img]",
  link: "a[href], [role=link]",
  list: "ul, ol, [role=list]",
  menuitem: "[role=menuitem]",
  option: "option, [role=option]",
  progressbar: "progress, [role=progressbar]",
  radio: "input[type=radio], [role=radio]",
  row: "tr, [role=row]",
  status: "output, [role=status]",
  tab: "[role=tab]",
  table: "table, [role=table], [role=grid]",
  textbox: "textarea, [role=textbox], [role=searchbox], input:not([type]), "
    + ["text", "password", "search", "email", "url", "number"].map((type) => `input[type=${type}]`).join(", "),
};
// What nobody reaches while a dialog is in front of it.
const CONTROLS = ["button", "checkbox", "link", "menuitem", "option", "radio", "tab", "textbox"];

const words = (text) => (text ?? "").replace(/\s+/g, " ").trim();

const nameOf = (el) => {
  const by = el.getAttribute("aria-labelledby");
  if (by) return words(by.split(/\s+/).map((id) => document.getElementById(id)?.textContent ?? "").join(" "));
  if (el.getAttribute("aria-label")) return words(el.getAttribute("aria-label"));
  if (el.labels?.length) return words([...el.labels].map((label) => label.textContent).join(" "));
  if (el.matches("table") && el.caption) return words(el.caption.textContent);
  if (el.matches("img")) return words(el.alt);
  if (el.matches("input[type=submit], input[type=button]")) return words(el.value);
  const copy = el.cloneNode(true);
  copy.querySelectorAll("[aria-hidden=true]").forEach((hidden) => hidden.remove());
  return words(copy.textContent) || words(el.title) || words(el.placeholder);
};

const inFront = () => [...document.querySelectorAll("dialog")].filter((el) => el.matches(":modal")).at(-1);

const innermost = (found) => found.filter((el) => !found.some((other) => other !== el && el.contains(other)));

const find = (wanted) => {
  let roots = [document];
  if (wanted.within) roots = find(wanted.within);
  else if (CONTROLS.includes(wanted.role)) roots = [inFront() ?? document];
  const all = (css) => [...new Set(roots.flatMap((root) => [...root.querySelectorAll(css)]))];
  if (wanted.css) return all(wanted.css).filter((el) => wanted.isHidden || isShown(el));
  if (wanted.role) {
    const found = all(ROLES[wanted.role] ?? `[role=${wanted.role}]`).filter(isShown).map((el) => [el, nameOf(el)]);
    const named = (holds) => found.filter(([, name]) => holds(name)).map(([el]) => el);
    const exactly = named((name) => !wanted.name || name === wanted.name);
    // A control of a row may say after its word what it is for.
    return exactly.length ? exactly : named((name) => name.startsWith(wanted.name) && !/^\p{L}/u.test(name.slice(wanted.name.length)));
  }
  const saying = (css, text) => innermost(all(css).filter((el) => words(el.textContent).includes(words(text)))).filter(isShown);
  if (wanted.row) return saying("tr, li, [role=row], [role=listitem], article", wanted.row);
  return saying("body, body *", wanted.text);
};
