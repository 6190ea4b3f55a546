{#
  The loads that an incremental model still has to take: above what it holds, below what may still be in flight.
  Both ends are read in statements of their own, before the one that scans, and written into it as literals:
  a bound read inside the scanning statement would miss a load that commits while the statement runs.
#}
{% macro in_load_window(load_id) -%}
    {{ load_id }} > {{ last_load_id() }} and {{ load_id }} < {{ safe_load_id() }}
{%- endmacro %}


{#
  The lock lasts until the model is committed, and keeps out other writers only: of two runs at once, one waits here.
  `dbt show` is to show rows of the model, and not the none that are left after a run.
#}
{% macro last_load_id() -%}
    {%- if flags.WHICH == 'show' or not (execute and load_cached_relation(this)) -%}{{ return(0) }}{%- endif -%}
    {%- do run_query('lock table ' ~ this ~ ' in share row exclusive mode') -%}
    {{ return(scalar('select coalesce(max(load_id), 0) from ' ~ this) if is_incremental() else 0) }}
{%- endmacro %}


{% macro safe_load_id() -%}
    {{ return(scalar('select raw.safe_load_id()') if execute else 0) }}
{%- endmacro %}
