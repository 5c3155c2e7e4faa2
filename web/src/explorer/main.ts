import { mount } from "svelte";
import "../page/theme.css";
import Explorer from "./Explorer.svelte";

mount(Explorer, { target: document.getElementById("page")! });
