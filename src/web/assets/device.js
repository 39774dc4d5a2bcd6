// How to go on with this page on another device.

import { drawing } from "./qr.js";
import { copy, dialog, h, text } from "./ui.js";

const LOOPBACK = /^(localhost|127(\.\d+){3}|\[::1\]|\[::ffff:7f.*\])\.?$/i;

/** Whether this page is one that no other device reaches. */
const isOnlyHere = () => LOOPBACK.test(location.hostname);

/** Shows the address and its code, or says how the page comes to have one. */
export function useElsewhere() {
  return dialog({ title: "Use on another device", className: "narrow", build: () => (isOnlyHere() ? howTo() : address()) });
}

function address() {
  const url = `${location.origin}/`;
  const field = h("input", { readOnly: true, value: url, "aria-label": "Address", onfocus: (event) => event.target.select() });
  const button = h("button", {
    type: "button", async onclick() {
      if (await copy(url)) text(button, "Copied");
      else field.focus();
    },
  }, "Copy");
  return [
    h("p", null, "Point the camera of a phone at this, or type the address there. Both have to be in the same network."),
    h("div", { class: "center" }, drawing(url, `QR code of ${url}`)),
    h("div", { class: "line nowrap" }, field, button),
    location.protocol === "https:" ? h("p", { class: "muted small" }, "The other browser may warn that it does not know this computer's certificate. It is its own; go on.") : null,
  ];
}

function howTo() {
  return [
    h("p", null, "At the moment this page can be opened on this computer alone. To open it on a phone in the same network, start the node with:"),
    h("p", null, h("code", { class: "block" }, "p2s2 share --api-bind 0.0.0.0 --tls")),
    h("p", { class: "muted small" }, "Then open this page by this computer's own address, and come back here: a code for the camera of the phone is shown. Everybody still has to sign in."),
  ];
}
