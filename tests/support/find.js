// Finds visible elements as a person would: by role and name, by text, or by the row that contains them.
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
// Roles that cannot be used while a modal dialog is open.
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

const find = (locator) => {
  let roots = [document];
  if (locator.within) roots = find(locator.within);
  else if (CONTROLS.includes(locator.role)) roots = [inFront() ?? document];
  const all = (css) => [...new Set(roots.flatMap((root) => [...root.querySelectorAll(css)]))];
  if (locator.css) return all(locator.css).filter((el) => locator.isHidden || isShown(el));
  if (locator.role) {
    const found = all(ROLES[locator.role] ?? `[role=${locator.role}]`).filter(isShown).map((el) => [el, nameOf(el)]);
    const named = (holds) => found.filter(([, name]) => holds(name)).map(([el]) => el);
    const exactly = named((name) => !locator.name || name === locator.name);
    // The name of a control in a row may continue with what the control applies to.
    return exactly.length ? exactly : named((name) => name.startsWith(locator.name) && !/^\p{L}/u.test(name.slice(locator.name.length)));
  }
  const saying = (css, text) => innermost(all(css).filter((el) => words(el.textContent).includes(words(text)))).filter(isShown);
  if (locator.row) return saying("tr, li, [role=row], [role=listitem], article", locator.row);
  return saying("body, body *", locator.text);
};
