/** Every text of the page. The two tables have the same keys and the same {values}. */

import { ENGLISH } from "./strings.en.js";
import { FRENCH } from "./strings.fr.js";

export const STRINGS = { en: ENGLISH, fr: FRENCH };
