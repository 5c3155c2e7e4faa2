import { mount } from "svelte";
import "virtual:palette.css";
import "../page/theme.css";
import "./live.css";
import Live from "./Live.svelte";
import { followToken } from "./token";

followToken();
mount(Live, { target: document.getElementById("page")! });
