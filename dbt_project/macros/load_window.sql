{#
  The loads that an incremental model still has to take: above what it holds, below what may still be in flight.
  Both ends are read in statements of their own, before the one that scans, and written into it as literals:
  a bound read inside the scanning statement would miss a load that commits while the statement runs.
#}
{% macro in_load_window(load_id) -%}
    {{ load_id }} > {{ last_load_id() }} and {{ load_id }} < {{ safe_load_id() }}
{%- endmacro %}


{% macro last_load_id() -%}
    {%- if not (execute and is_incremental()) -%}{{ return(0) }}{%- endif -%}
    {{ return(run_query("select coalesce(max(load_id), 0) from " ~ this).columns[0].values()[0]) }}
{%- endmacro %}


{% macro safe_load_id() -%}
    {%- if not execute -%}{{ return(0) }}{%- endif -%}
    {{ return(run_query("select raw.safe_load_id()").columns[0].values()[0]) }}
{%- endmacro %}
