import { mount } from "svelte";
import "../page/theme.css";
import "./live.css";
import Live from "./Live.svelte";

mount(Live, { target: document.getElementById("page")! });
